package redis

import (
	"context"
	"errors"
	"sync"

	"github.com/ThreeDotsLabs/watermill-redisstream/pkg/redisstream"
	goredis "github.com/redis/go-redis/v9"

	"github.com/wheelrefinery/refinery/bus"
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

// writer sends what this process publishes. Its goroutine takes all that waits and sends it in one round trip, which Redis syncs once;
// what arrives meanwhile is the next batch, so nobody waits for company, and what is published one after the other arrives so.
type writer struct {
	bus *redisBus

	mu     sync.Mutex
	queue  []request
	closed bool
	wake   chan struct{}
	done   chan struct{}

	unheard map[string]volume // published since it was looked; of the goroutine alone
}

type volume struct{ messages, bytes int }

type request struct {
	topic   string
	entries []*goredis.XAddArgs
	size    int
	done    chan error
}

func startWriter(b *redisBus) *writer {
	w := &writer{bus: b, wake: make(chan struct{}, 1), done: make(chan struct{}), unheard: map[string]volume{}}
	go w.run()
	return w
}

// write returns when the server has answered. If it fails, the entries may still be stored.
func (w *writer) write(r request) error {
	w.mu.Lock()
	if w.closed {
		w.mu.Unlock()
		return bus.ErrClosed
	}
	w.queue = append(w.queue, r)
	w.mu.Unlock()
	w.signal()
	return <-r.done
}

func (w *writer) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// close sends what waits and ends the writer.
func (w *writer) close() {
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	w.signal()
	<-w.done
}

func (w *writer) run() {
	defer close(w.done)
	for range w.wake {
		for {
			batch, closed := w.take()
			if len(batch) == 0 {
				if closed {
					return
				}
				break
			}
			w.send(batch)
		}
	}
}

func (w *writer) take() (batch []request, closed bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n, size := 0, 0
	for n < len(w.queue) && (n == 0 || size+w.queue[n].size <= maxBatch) {
		size += w.queue[n].size
		n++
	}
	batch = w.queue[:n:n]
	if w.queue = w.queue[n:]; len(w.queue) == 0 {
		w.queue = nil // let the entries go
	}
	return batch, w.closed
}

func (w *writer) send(batch []request) {
	pipe := w.bus.client.Pipeline()
	ctx := context.Background() // the connection has its timeouts
	for _, r := range batch {
		for _, e := range r.entries {
			pipe.XAdd(ctx, e)
		}
	}
	for _, r := range batch {
		if keep := unheardBytes[r.topic]; keep > 0 {
			v := w.unheard[r.topic]
			v.messages += len(r.entries)
			v.bytes += r.size
			if v.messages >= unheardMessages || v.bytes >= keep {
				v = volume{}
				pipe.Eval(ctx, trimUnheard, streamNames(r.topic), keep)
			}
			w.unheard[r.topic] = v
		}
	}
	cmds, err := pipe.Exec(ctx)
	for _, r := range batch {
		failed := err
		if len(cmds) >= len(r.entries) {
			failed = nil
			for _, cmd := range cmds[:len(r.entries)] {
				failed = errors.Join(failed, cmd.Err())
			}
			cmds = cmds[len(r.entries):]
		}
		r.done <- failed
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
