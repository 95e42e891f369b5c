package redis

import (
	"context"
	"errors"

	"github.com/ThreeDotsLabs/watermill-redisstream/pkg/redisstream"
	goredis "github.com/redis/go-redis/v9"

	"github.com/wheelrefinery/refinery/bus"
	"github.com/wheelrefinery/refinery/bus/gather"
)

var marshaller redisstream.DefaultMarshallerUnmarshaller

const (
	// maxBatch is how many bytes of payload go into one pipeline, but for a single larger request.
	maxBatch = 8 << 20
	// unheardMessages is after how many messages of this process it is looked whether anybody reads a topic of unheardBytes.
	unheardMessages = 1000
)

// unheardBytes is what is kept in each shard of the topics that only tell what the event log knows anyway, while no group reads them.
var unheardBytes = map[string]int{bus.TopicBuildRequested: 1 << 20, bus.TopicPoison: 16 << 20}

// writer sends what this process publishes: all that waits in one round trip, which Redis syncs once; and what is published one after the
// other arrives so.
type writer struct {
	bus *redisBus
	*gather.Writer[publication]
	unheard map[string]volume // published since it was looked; of the goroutine that sends alone
}

type volume struct{ messages, bytes int }

// publication is the entries of one Publish. If sending them fails they may still be stored.
type publication struct {
	topic   string
	entries []*goredis.XAddArgs
}

func startWriter(b *redisBus) *writer {
	w := &writer{bus: b, unheard: map[string]volume{}}
	w.Writer = gather.New(maxBatch, w.send)
	return w
}

func (w *writer) send(batch []gather.Request[publication]) {
	pipe := w.bus.client.Pipeline()
	ctx := context.Background() // the connection has its timeouts
	for _, r := range batch {
		for _, e := range r.What.entries {
			pipe.XAdd(ctx, e)
		}
	}
	for _, r := range batch {
		topic := r.What.topic
		if keep := unheardBytes[topic]; keep > 0 {
			v := w.unheard[topic]
			v.messages += len(r.What.entries)
			v.bytes += r.Size
			if v.messages >= unheardMessages || v.bytes >= keep {
				v = volume{}
				pipe.Eval(ctx, trimUnheard, streamNames(topic), keep)
			}
			w.unheard[topic] = v
		}
	}
	cmds, err := pipe.Exec(ctx)
	for _, r := range batch {
		failed, n := err, len(r.What.entries)
		if len(cmds) >= n {
			failed = nil
			for _, cmd := range cmds[:n] {
				failed = errors.Join(failed, cmd.Err())
			}
			cmds = cmds[n:]
		}
		r.Answer(failed)
	}
}

// trimUnheard removes the older half of a stream without groups until it has at most ARGV[1] bytes.
const trimUnheard = `
for _, stream in ipairs(KEYS) do
	if redis.call('EXISTS', stream) == 1 and #redis.call('XINFO', 'GROUPS', stream) == 0 then
		while redis.call('MEMORY', 'USAGE', stream) > tonumber(ARGV[1]) and redis.call('XLEN', stream) > 1 do
			redis.call('XTRIM', stream, 'MAXLEN', math.floor(redis.call('XLEN', stream) / 2))
		end
	end
end`
