package redis

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/wheelrefinery/refinery/bus"
)

// statsScript answers, for each stream, with its memory, whether it holds anything, and for each of its groups the name and whether
// anything is left for it.
const statsScript = `
local all = {}
for i, stream in ipairs(KEYS) do
	if redis.call('EXISTS', stream) == 1 then
		local one = {redis.call('MEMORY', 'USAGE', stream), redis.call('XLEN', stream)}
		for _, g in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
			local name, id
			for f = 1, #g, 2 do
				if g[f] == 'name' then name = g[f + 1] elseif g[f] == 'last-delivered-id' then id = g[f + 1] end
			end
			one[#one + 1] = name
			one[#one + 1] = #redis.call('XRANGE', stream, '(' .. id, '+', 'COUNT', 1)
		end
		all[#all + 1] = one
	end
end
return all`

// Stats asks the server, so that it knows of other processes' groups too; bytes are the memory of the shards that hold something.
func (b *redisBus) Stats() ([]bus.Stats, error) {
	b.mu.Lock()
	closed := b.closed
	b.mu.Unlock()
	if closed {
		return nil, bus.ErrClosed
	}
	topics, err := b.client.SMembers(b.ctx, topicsKey).Result()
	if err != nil {
		return nil, fmt.Errorf("bus: list topics: %w", err)
	}
	slices.Sort(topics)
	var all []bus.Stats
	for _, topic := range topics {
		one, err := b.stats(topic)
		if err != nil {
			return nil, fmt.Errorf("bus: look at topic %s: %w", topic, err)
		}
		all = append(all, one...)
	}
	return all, nil
}

func (b *redisBus) stats(topic string) (all []bus.Stats, err error) {
	streams, err := b.client.Eval(b.ctx, statsScript, streamNames(topic)).Slice()
	if err != nil {
		return nil, err
	}
	defer func() {
		if recover() != nil { // a type assertion below
			all, err = nil, fmt.Errorf("the script answered %v", streams)
		}
	}()
	bytes := map[string]int64{}
	alone := int64(0)
	for _, one := range streams {
		s := one.([]any)
		memory, length := s[0].(int64), s[1].(int64)
		if len(s) == 2 && length > 0 {
			alone += memory
		}
		for i := 2; i < len(s); i += 2 {
			bytes[s[i].(string)] += memory * s[i+1].(int64)
		}
	}
	if len(bytes) == 0 {
		return []bus.Stats{{Topic: topic, Bytes: alone}}, nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for group, n := range bytes {
		s := bus.Stats{Topic: topic, Group: group, Bytes: n}
		if c := b.groups[groupName{topic, group}]; c != nil {
			if now := c.shown.Load(); now != nil {
				s.Unacked, s.Oldest = now.unacked, now.oldest
			}
		}
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b bus.Stats) int { return cmp.Compare(a.Group, b.Group) })
	return all, nil
}
