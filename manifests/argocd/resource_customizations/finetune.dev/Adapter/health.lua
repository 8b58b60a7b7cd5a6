-- A fixed version that cannot be served: Degraded. Everything else: Healthy, also while nothing is approved yet, or the
-- wave of the job that makes the first version would never come.
local health = {status = "Progressing", message = "waiting for the operator"}
local status = obj.status
if status == nil or (status.observedGeneration or 0) < (obj.metadata.generation or 0) then
  return health
end

for _, condition in ipairs(status.conditions or {}) do
  if condition.type == "Ready" then
    health.status = condition.status == "True" and "Healthy" or "Degraded"
    health.message = condition.message or condition.reason
  end
end
return health
