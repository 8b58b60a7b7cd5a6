-- A pool is a declaration: Healthy unless its Ready condition says otherwise. Without a node it waits for one, which an
-- autoscaler or the platform team brings.
local health = {status = "Healthy", message = ""}
local status = obj.status
if status == nil or status.conditions == nil then
  return health
end
if (status.observedGeneration or 0) < (obj.metadata.generation or 0) then
  return {status = "Progressing", message = "waiting for the operator"}
end

for _, condition in ipairs(status.conditions) do
  if condition.type == "Ready" then
    health.message = condition.message or condition.reason
    if condition.status ~= "True" then
      local waits = condition.reason == "NoMatchingNode" or condition.reason == "NoReadyNode"
      health.status = waits and "Progressing" or "Degraded"
    end
  end
end
return health
