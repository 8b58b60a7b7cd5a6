-- Waiting for a person: Suspended. Turned down by a gate or a person: Degraded. Approved: Healthy, served or not.
local health = {status = "Progressing", message = "waiting for the operator"}
local status = obj.status
if status == nil or status.phase == nil or (status.observedGeneration or 0) < (obj.metadata.generation or 0) then
  return health
end

local codes = {PendingApproval = "Suspended", Approved = "Healthy", Rejected = "Degraded", GateFailed = "Degraded"}
health.status = codes[status.phase] or "Unknown"
health.message = status.message or status.phase
return health
