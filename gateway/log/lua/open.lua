-- Opens the log, and makes it where there is none. ARGV: format, epoch, secret and index for a new log.
-- Returns format, epoch, secret, head, first, index, built, digest of the event at head.
if call('EXISTS', META) == 0 then
  call('DEL', LOG, IDS, KEPT, LATEST, ORDERS, KEYS_OF, BEHIND)
  call('HSET', META, 'format', ARGV[1], 'epoch', ARGV[2], 'secret', ARGV[3], 'index', ARGV[4], 'built', ARGV[4],
    'head', 0, 'first', 1, 'accepted', 0)
end
local meta = call('HMGET', META, 'format', 'epoch', 'secret', 'head', 'first', 'index', 'built', 'last')
return {
  meta[1], meta[2], meta[3], tonumber(meta[4]), tonumber(meta[5]), meta[6] or '', meta[7] or '', meta[8] or NONE
}
