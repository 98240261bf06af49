-- Takes out of the log up to `limit` of its oldest events: those beyond `events` or accepted before `since`.
-- What is a subject's latest stays, apart from the log. Returns the new first offset.
local function evict_events(first, head, events, since, limit)
  local last, is_old = first - 1, false
  while limit > 0 and last < head do
    local size = math.min(limit, 100, is_old and 100 or math.max(1, head - events - last))
    local page = call('XRANGE', LOG, string.format('%d-0', last + 1), '+', 'COUNT', size)
    if #page == 0 then
      break
    end
    local digests, subjects, rows = {}, {}, {}
    for n, each in ipairs(page) do
      local m = each[2][2]
      local prev, accepted, subject = parts(m)
      if last + n > head - events then
        is_old = tonumber(accepted) < since
        if not is_old then
          limit = n - 1
          break
        end
      end
      digests[n], subjects[n], rows[n] = string.sub(m, 1, 16), subject, {prev, accepted, each[2][4]}
    end
    if #digests == 0 then
      break
    end
    local latest, orders = ask('ZMSCORE', LATEST, subjects), ask('ZMSCORE', ORDERS, subjects)
    for n, subject in ipairs(subjects) do
      local offset = last + n
      if subject ~= '' and (tonumber(latest[n] or 0) == offset or tonumber(orders[n] or 0) == offset) then
        call('HSET', KEPT, offset, cmsgpack.pack(rows[n]))
      end
    end
    tell('HDEL', IDS, digests)
    last = last + #digests
    limit = limit - #digests
  end
  if last >= first then
    call('XTRIM', LOG, 'MINID', string.format('%d-0', last + 1))
  end
  return last + 1
end

-- Forgets up to `limit` of the oldest latest events that the log has dropped and that were accepted before `since`.
-- Returns how many.
local function evict_latest(set, first, since, limit)
  local dropped = 0
  local rows = call('ZRANGEBYSCORE', set, '-inf', '(' .. string.format('%d', first), 'WITHSCORES', 'LIMIT', 0, limit)
  for i = 1, #rows, 2 do
    local subject, offset = rows[i], tonumber(rows[i + 1])
    local found = entry(offset)
    if found and tonumber(found[3]) >= since then
      break
    end
    local is_latest = score(LATEST, subject) == offset
    if score(ORDERS, subject) == offset then
      if not is_latest then
        drop_behind(subject, first)
      end
      call('ZREM', ORDERS, subject)
    end
    if is_latest then
      drop_keys(X, call('HGET', KEYS_OF, subject) or '[]', {}, subject)
      call('HDEL', KEYS_OF, subject)
      call('ZREM', LATEST, subject)
    end
    call('HDEL', KEPT, offset)
    dropped = dropped + 1
  end
  return dropped
end
