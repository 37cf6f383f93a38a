-- KEYS are buckets. ARGV[1] is 1 to take in any case; then come, for each bucket, the
-- microseconds in which it regains one, how many it holds, and how many to take.
-- Of each bucket one number is kept: the time when it will be full.
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local full, wait = {}, 0
for i, key in ipairs(KEYS) do
  local each, most, cost = tonumber(ARGV[3 * i - 1]), tonumber(ARGV[3 * i]), tonumber(ARGV[3 * i + 1])
  full[i] = math.max(tonumber(redis.call('GET', key) or 0), now)
  wait = math.max(wait, full[i] + cost * each - (now + most * each))
end
if wait < 1 or ARGV[1] == '1' then -- less than a microsecond is an error of rounding
  wait = 0
  for i, key in ipairs(KEYS) do
    local each, cost = tonumber(ARGV[3 * i - 1]), tonumber(ARGV[3 * i + 1])
    if cost > 0 then
      full[i] = full[i] + cost * each
      redis.call('SET', key, string.format('%.0f', full[i]), 'PX', string.format('%.0f', math.ceil((full[i] - now) / 1000)))
    end
  end
end
local told = { string.format('%.0f', math.ceil(wait)) }
for i in ipairs(KEYS) do
  told[i + 1] = string.format('%.6f', tonumber(ARGV[3 * i]) - (full[i] - now) / tonumber(ARGV[3 * i - 1]))
end
return told
