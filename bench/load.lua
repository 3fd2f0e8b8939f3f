-- Sends the requests of a file in turn and prints what came of them as one line of JSON.
-- Arguments: the file, whose requests end with a zero byte; how many of them to skip at first; the mean pause of a
-- connection between two requests in milliseconds (0: none).

local requests, number = {}, 0

function init(arguments)
  local file = assert(io.open(arguments[1], "rb"))
  local text = file:read("*a")
  file:close()
  local start = 1
  while start <= #text do
    local stop = text:find("\0", start, true)
    requests[#requests + 1] = text:sub(start, stop - 1)
    start = stop + 1
  end
  number = tonumber(arguments[2])
  local pause = tonumber(arguments[3])
  if pause > 0 then
    -- Random, so that the connections do not come in step.
    function delay() return math.floor(math.random() * 2 * pause + 0.5) end
  end
end

function request()
  number = number % #requests + 1
  return requests[number]
end

function done(summary, latency)
  local errors = summary.errors
  print(string.format(
    '{"requests": %d, "refused": %d, "broken": %d, "seconds": %f, "p50_us": %f, "p99_us": %f, "max_us": %f}',
    summary.requests, errors.status, errors.connect + errors.read + errors.write + errors.timeout,
    summary.duration / 1e6, latency:percentile(50), latency:percentile(99), latency.max))
end
