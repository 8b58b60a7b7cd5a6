-- Queued and running: Progressing. Suspended, or waiting for a person: Suspended. A failed gate, a failed or refused
-- job, a rejected version: Degraded. Released, or nothing left to do: Healthy. docs/gitops.md has the table.
local health = {status = "Progressing", message = "waiting for the operator"}
local status = obj.status
if status == nil or status.phase == nil or (status.observedGeneration or 0) < (obj.metadata.generation or 0) then
  return health
end

local conditions = {}
for _, condition in ipairs(status.conditions or {}) do
  conditions[condition.type] = condition
end

health.message = status.message or status.phase
if status.progress ~= nil and status.progress ~= "" then
  health.message = status.progress .. ": " .. health.message
end

local function set(code, message)
  health.status = code
  health.message = message or status.message or status.phase
  return health
end

local stalled = conditions["Stalled"]
if status.phase == "Failed" or (stalled ~= nil and stalled.status == "True") then
  return set("Degraded")
end
if status.phase == "Suspended" or status.phase == "Cancelled" then
  return set("Suspended")
end
if status.phase ~= "Succeeded" then
  return health
end

local released = conditions["Released"] or {}
if released.status == "True" then
  return set("Healthy")
end
if released.reason == "GateFailed" or released.reason == "Rejected" then
  return set("Degraded", released.message)
end
if released.reason == "AwaitingApproval" or released.reason == "Inconclusive" then
  return set("Suspended", released.message)
end
-- NotServed: approved, and a channel's owner chose another version. Unchanged, BaselineSuffices: nothing to release.
return set("Healthy")
