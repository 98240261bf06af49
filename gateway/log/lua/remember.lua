-- Stores an answer under a key, and with it a revocation ('' for none).
-- ARGV: key ('' for none), now, digest, status, headers, body, kind and value to revoke, at, nonce of the call: one that
-- is repeated because its answer was lost finds its own.
if ARGV[1] ~= '' then
  local reply = P .. 'reply:' .. ARGV[1]
  local stored = call('HMGET', reply, 'stored', 'nonce')
  if tonumber(stored[1] or 0) > tonumber(ARGV[2]) - 86400000000 and stored[2] ~= ARGV[9] then
    return {'TAKEN'}
  end
  call('DEL', reply)
  call('HSET', reply, 'stored', ARGV[2], 'digest', ARGV[3], 'status', ARGV[4], 'headers', ARGV[5], 'body', ARGV[6],
    'nonce', ARGV[9])
  call('PEXPIRE', reply, 86400000)
end
if ARGV[7] ~= '' then
  local at = call('HGET', P .. 'revocations', ARGV[7])
  if tonumber(at or 0) < tonumber(ARGV[8]) then
    call('HSET', P .. 'revocations', ARGV[7], ARGV[8])
  end
end
return {'OK'}
