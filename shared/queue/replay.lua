-- REPLAY: dead settlement records go back into the settlement queue, each in one step. Called by settlements.py.
-- KEYS  as names.lua, 13 dead letters, 14 settlement queue
-- ARGV  2 … entry ids of dead letters
-- Answers how many went back. What is no settlement record stays; what is gone, replayed by somebody else, is passed over.
local replayed = 0
for place = 2, #ARGV do
  local entry = call('XRANGE', KEYS[13], ARGV[place], ARGV[place])[1]
  local letter = {}
  for field = 1, entry and #entry[2] or 0, 2 do
    letter[entry[2][field]] = entry[2][field + 1]
  end
  if letter.f and (letter.kind or 'finish') == 'finish' then
    call('XADD', KEYS[14], '*', 'f', letter.f)
    call('XDEL', KEYS[13], ARGV[place])
    replayed = replayed + 1
  end
end
return replayed
