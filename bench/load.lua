-- Sends the requests of a file in turn and prints the results as one line of JSON.
-- Arguments: the file, in which each request ends with a zero byte; the number of requests to skip; the mean pause of a
-- connection between two requests in milliseconds (0: none).
-- A request may have marks (see wire.py). Each time, another number replaces them.

local requests, number, is_marked = {}, 0, false

-- The base64 of each group of three digits.
local encoded = {}

local function fill_encoded()
  local alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
  for value = 0, 999 do
    local digits = string.format("%03d", value)
    local first, second, third = digits:byte(1, 3)
    local bits, text = (first * 256 + second) * 256 + third, ""
    for _ = 1, 4 do
      local index = bits % 64
      text = alphabet:sub(index + 1, index + 1) .. text
      bits = (bits - index) / 64
    end
    encoded[digits] = text
  end
end

local function fill(template, value)
  local long = string.format("%012d", value)
  local marks = { ["\1"] = long, ["\2"] = long:gsub("%d%d%d", encoded), ["\3"] = long:sub(5) }
  return (template:gsub("[\1\2\3]", marks))
end

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
  is_marked = text:find("[\1\2\3]") ~= nil
  if is_marked then fill_encoded() end
  number = tonumber(arguments[2])
  local pause = tonumber(arguments[3])
  if pause > 0 then
    -- Random, so that the connections do not send at the same time.
    function delay() return math.floor(math.random() * 2 * pause + 0.5) end
  end
end

function request()
  local turn = math.floor(number / #requests)
  local chosen = requests[number - turn * #requests + 1]
  number = number + 1
  return is_marked and fill(chosen, turn) or chosen
end

function done(summary, latency)
  local errors = summary.errors
  print(string.format(
    '{"requests": %d, "refused": %d, "broken": %d, "seconds": %f, "p50_us": %f, "p99_us": %f, "max_us": %f}',
    summary.requests, errors.status, errors.connect + errors.read + errors.write + errors.timeout,
    summary.duration / 1e6, latency:percentile(50), latency:percentile(99), latency.max))
end
