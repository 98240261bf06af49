-- Deletes dead letters. ARGV: ids. Returns how many there were.
local gone = 0
for _, id in ipairs(ARGV) do
  gone = gone + drop_letter(id)
end
return {'OK', gone}
