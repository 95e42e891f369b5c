package readapi

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"runtime/debug"
	"sync"
	"time"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/internal/fault"
)

const (
	keptBytes = 16 << 20 // of all answers that are kept, about
	keptMost  = 1 << 20  // of one answer; a larger one is not kept
	// agedFor is how long an answer with ages is kept.
	agedFor = 500 * time.Millisecond
	// worthGzip is the least size that is compressed: a smaller one fits a packet anyway.
	worthGzip = 1400
	// slotWait is how long a read waits for others of its kind.
	slotWait = 10 * time.Second
)

// kept is an answer as it is sent.
type kept struct {
	version uint64 // of the read models that it was made of
	until   time.Time
	etag    string
	link    string // the next page
	body    []byte
	gzipped func() []byte
}

// answers keeps answers encoded, by path and parameters. An answer serves while the version of its read models stays, so it is never
// staler than they are.
type answers struct {
	mu         sync.Mutex
	young, old map[string]*kept // the older half goes when the younger is full
	bytes      int              // of young
}

func (a *answers) get(key string, version uint64) *kept {
	a.mu.Lock()
	defer a.mu.Unlock()
	k, young := a.young[key]
	if !young {
		k = a.old[key]
	}
	if k == nil || k.version != version || !k.until.IsZero() && time.Now().After(k.until) {
		return nil
	}
	if !young {
		a.put(key, k)
	}
	return k
}

func (a *answers) add(key string, k *kept) {
	if len(k.body) > keptMost {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.put(key, k)
}

func (a *answers) put(key string, k *kept) {
	if a.young == nil || a.bytes > keptBytes/2 {
		a.young, a.old, a.bytes = map[string]*kept{}, a.young, 0
	}
	if before := a.young[key]; before != nil {
		a.bytes -= before.size(key)
	}
	a.young[key] = k
	a.bytes += k.size(key)
}

func (k *kept) size(key string) int { return len(k.body) + len(key) + 300 }

// keep returns the answer of r, made by body unless one is kept. Those who want the same at once share one.
func (s *Server) keep(ctx context.Context, r read, key string, version uint64, body func() (any, error)) (*kept, error) {
	for {
		if k := s.answers.get(key, version); k != nil {
			return k, nil
		}
		made := s.flights.DoChan(fmt.Sprint(version, key), func() (any, error) {
			k, err := s.make(ctx, r, key, body)
			if err != nil {
				return nil, err
			}
			k.version = version
			s.answers.add(key, k)
			return k, nil
		})
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case m := <-made:
			if errors.Is(m.Err, context.Canceled) && ctx.Err() == nil {
				continue // the client that it was made for has gone
			}
			k, _ := m.Val.(*kept)
			return k, m.Err
		}
	}
}

// make makes an answer.
func (s *Server) make(ctx context.Context, r read, key string, body func() (any, error)) (k *kept, err error) {
	defer func() { // where nobody else would
		if v := recover(); v != nil {
			err = fmt.Errorf("panic: %v\n%s", v, debug.Stack())
		}
	}()
	k = &kept{}
	if r.aged {
		k.until = time.Now().Add(agedFor)
	}
	b, err := s.rows(ctx, r, body)
	if err != nil {
		return nil, err
	}
	if p, ok := b.(page); ok {
		k.link = s.link(ctx, r, p)
		b = p.body
	}
	if k.body, err = encode(b); err != nil {
		return nil, err
	}
	k.etag = etag(key, k.body)
	k.gzipped = sync.OnceValue(func() []byte { return compressed(k.body) })
	return k, nil
}

func encode(body any) ([]byte, error) {
	b, err := json.Marshal(body)
	if err != nil {
		return nil, fmt.Errorf("encode the answer: %w", err)
	}
	return append(b, '\n'), nil
}

func compressed(body []byte) []byte {
	var b bytes.Buffer
	z, _ := gzip.NewWriterLevel(&b, gzip.BestSpeed) // the level is valid
	_, _ = z.Write(body)                            // into memory
	_ = z.Close()
	return b.Bytes()
}

// answer sends k, compressed where the client takes that.
func (k *kept) answer(ctx context.Context, h http.Header) api.Answer {
	body := k.body
	if len(body) >= worthGzip {
		h.Set("Vary", "Accept-Encoding")
		if api.RequestFrom(ctx).Gzip {
			body = k.gzipped()
			h.Set("Content-Encoding", "gzip")
		}
	}
	if k.link != "" {
		h.Set("Link", k.link)
	}
	return api.Answer{Status: http.StatusOK, Header: h, Body: api.Encoded(body)}
}

// rows calls body while few others of its kind do: those that wait for a locked table leave connections to the rest.
func (s *Server) rows(ctx context.Context, r read, body func() (any, error)) (any, error) {
	v, ok := s.slots.Load(reflect.TypeOf(r.params))
	if !ok {
		v, _ = s.slots.LoadOrStore(reflect.TypeOf(r.params), make(chan struct{}, s.atOnce))
	}
	slots := v.(chan struct{})
	select {
	case slots <- struct{}{}:
	default:
		late := time.NewTimer(slotWait)
		defer late.Stop()
		select {
		case slots <- struct{}{}:
		case <-late.C:
			return nil, fault.New(fault.Unavailable, "Too many reads of this kind wait for the database. Try again in a moment.")
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	defer func() { <-slots }()
	return body()
}
