package redis

import (
	"context"
	"fmt"
	"strconv"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/wheelrefinery/refinery/bus"
)

// Which process of a group reads which shard:
//
//	refinery:members:<topic>:<group>   sorted set: member, and until when it lives (milliseconds of the server's clock)
//	refinery:leases:<topic>:<group>    hash: shard, and the member that holds it
//
// A lease holds while its member lives. Each member prolongs its life every keepInterval, and takes shards that nobody holds until it has
// its share, which is the shards divided by the members that live (of a topic that one reads: all, where no other that lives has any); one
// that has more gives some back. What a member stores for a shard is
// stored only while it holds the lease, in the same script. So an order of handling is kept when the reading process changes: who gives a
// shard back has let its last message of it go before; and who could not prolong its life ends the work on all its messages after
// leaseTrust, which is well before others take the shards at leaseTime, both counted from before its last success. A process that was
// frozen for longer can work for a moment on a message that another has as well, until its timer fires: what it stores here is refused,
// and consumers know messages by their UUID.
const (
	leaseTime    = 8 * time.Second
	leaseTrust   = 5 * time.Second
	keepInterval = time.Second
	// hungryInterval is how often a member with less than its share looks for more, so many times before it goes back to keepInterval:
	// where shards cannot be shared evenly, somebody has fewer for good.
	hungryInterval = 100 * time.Millisecond
	mostHunger     = 30
	// drainTime is how long a shard that is to be given back waits for the messages that subscribers have of it; longer, and it stays
	// for now, since its other messages would wait as well.
	drainTime = time.Second
)

// kept is what keep found.
type kept struct {
	share   int
	owned   map[int]bool
	claimed map[int]string // shards that are owned anew, and until where each is passed
}

// keepScript prolongs the member's life and takes shards up to its share. ARGV: member, leaseTime, group, 1 if the member has let go what it
// held, and 1 if one member reads all shards and others stand by.
var keepScript = goredis.NewScript(`
local now = redis.call('TIME')
now = now[1] * 1000 + math.floor(now[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
local lives, members = {}, 0
for _, m in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
	lives[m] = true
	members = members + 1
end
local shards = #KEYS - 2
local holders = {}
local flat = redis.call('HGETALL', KEYS[2])
for i = 1, #flat, 2 do holders[flat[i]] = flat[i + 1] end
local share = math.ceil(shards / members)
if ARGV[5] == '1' then
	share = shards
	for _, holder in pairs(holders) do
		if holder ~= ARGV[1] and lives[holder] then share = 0 end
	end
end
local owned, free = {}, {}
for i = 0, shards - 1 do
	local holder = holders[tostring(i)]
	if holder == ARGV[1] and ARGV[4] == '1' then
		redis.call('HDEL', KEYS[2], i)
		holder = nil
	end
	if holder == ARGV[1] then owned[#owned + 1] = i
	elseif not holder or not lives[holder] then free[#free + 1] = i end
end
local function passed(stream)
	local groups = redis.pcall('XINFO', 'GROUPS', stream)
	if not groups.err then
		for _, g in ipairs(groups) do
			local name, id
			for f = 1, #g, 2 do
				if g[f] == 'name' then name = g[f + 1] elseif g[f] == 'last-delivered-id' then id = g[f + 1] end
			end
			if name == ARGV[3] then return id end
		end
	end
	redis.call('XGROUP', 'CREATE', stream, ARGV[3], '0', 'MKSTREAM')
	return '0-0'
end
local claimed = {}
for _, i in ipairs(free) do
	if #owned + #claimed / 2 >= share then break end
	redis.call('HSET', KEYS[2], i, ARGV[1])
	claimed[#claimed + 1] = tostring(i)
	claimed[#claimed + 1] = passed(KEYS[i + 3])
end
return {share, owned, claimed}`)

func (c *consumer) keep(ctx context.Context, anew bool) (k kept, err error) {
	keys := append([]string{membersKey(c.topic, c.group), leasesKey(c.topic, c.group)}, c.streams...)
	r, err := keepScript.Run(ctx, c.bus.client, keys, c.me, leaseTime.Milliseconds(), c.group, anew, bus.ReadByOne(c.topic)).Slice()
	if err != nil {
		return k, err
	}
	defer func() {
		if recover() != nil { // a type assertion below
			err = fmt.Errorf("the script answered %v", r)
		}
	}()
	k = kept{share: int(r[0].(int64)), owned: map[int]bool{}, claimed: map[int]string{}}
	for _, n := range r[1].([]any) {
		k.owned[int(n.(int64))] = true
	}
	claimed := r[2].([]any)
	for i := 0; i < len(claimed); i += 2 {
		n, err := strconv.Atoi(claimed[i].(string))
		if err != nil {
			return k, err
		}
		k.claimed[n] = claimed[i+1].(string)
	}
	return k, nil
}

// storeScript stores until where shards are passed, and removes what all groups have passed. It answers with the shards that the member
// does not hold. ARGV: member, group, whether the leases are given back, then shard and position for each stream.
var storeScript = goredis.NewScript(`
local function trim(stream)
	local ms, seq
	for _, g in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
		for f = 1, #g, 2 do
			if g[f] == 'last-delivered-id' then
				local m, s = string.match(g[f + 1], '^(%d+)-(%d+)$')
				m, s = tonumber(m), tonumber(s)
				if not ms or m < ms or m == ms and s < seq then ms, seq = m, s end
			end
		end
	end
	redis.call('XTRIM', stream, 'MINID', string.format('%.0f-%.0f', ms, seq + 1))
end
local lost = {}
for i = 2, #KEYS do
	local shard, id = ARGV[2 * i], ARGV[2 * i + 1]
	if redis.call('HGET', KEYS[1], shard) ~= ARGV[1] then
		lost[#lost + 1] = tonumber(shard)
	elseif redis.pcall('XGROUP', 'SETID', KEYS[i], ARGV[2], id).err then
		redis.call('HDEL', KEYS[1], shard)
		lost[#lost + 1] = tonumber(shard)
	else
		trim(KEYS[i])
		if ARGV[3] == '1' then redis.call('HDEL', KEYS[1], shard) end
	end
end
return lost`)

// store stores what is passed of shards, and gives them back if so told.
func (c *consumer) store(ctx context.Context, passed map[int]string, giveBack bool) (lost []int64, err error) {
	if len(passed) == 0 {
		return nil, nil
	}
	keys := []string{leasesKey(c.topic, c.group)}
	args := []any{c.me, c.group, 0}
	if giveBack {
		args[2] = 1
	}
	for n, id := range passed {
		keys = append(keys, c.streams[n])
		args = append(args, n, id)
	}
	return storeScript.Run(ctx, c.bus.client, keys, args...).Int64Slice()
}

// farewell ends the member's life, so that others need not wait for it.
func (c *consumer) farewell(ctx context.Context) error {
	return c.bus.client.ZRem(ctx, membersKey(c.topic, c.group), c.me).Err()
}
