package readapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/wheelrefinery/refinery/api"
)

// tellEvery is how many events that a follower does not want pass before it learns how far it is.
const tellEvery = 10_000

// FollowEvents answers GET /events.
func (s *Server) FollowEvents(ctx context.Context, request api.FollowEventsRequestObject) (api.FollowEventsResponseObject, error) {
	p := request.Params
	t := &eventStream{ctx: ctx, feed: s.feed, at: s.o.Log.Head()}
	if p.Stream != nil {
		t.only.stream = *p.Stream
	}
	if p.Type != nil {
		t.only.kinds = *p.Type
	}
	for name, from := range map[string]*int64{"query:after": p.After, "header:Last-Event-ID": p.LastEventID} {
		if from == nil {
			continue
		}
		if err := s.reached(ctx, name, *from); err != nil {
			return nil, err
		}
		t.at = *from
	}
	if p.LastEventID != nil { // a browser that connects again sends both
		t.at = *p.LastEventID
	}
	return t, nil
}

// reached refuses a position that the log has not come to, as after a restore from an older backup: what follows it will never come.
func (s *Server) reached(ctx context.Context, pointer string, position int64) error {
	if position <= s.o.Log.Head() {
		return nil
	}
	var head int64 // which another process may have moved
	if err := s.o.Pool.QueryRow(ctx, "select position from head").Scan(&head); err != nil {
		return fmt.Errorf("read the head of the log: %w", err)
	}
	if position <= head {
		return nil
	}
	return wrong(pointer, fmt.Sprintf("is beyond the end of the log, which is %d: start without it", head))
}

// eventStream sends the events behind at.
type eventStream struct {
	ctx  context.Context
	feed *feed
	only only
	at   int64
}

// VisitFollowEventsResponse follows until the client leaves, does not keep up, or the server stops.
func (t *eventStream) VisitFollowEventsResponse(w http.ResponseWriter) error {
	if err := t.feed.join(); err != nil {
		return err
	}
	defer t.feed.leave()
	out, ok := startSSE(t.ctx, w, t.at)
	defer out.end()
	live, told := false, t.at
	for ok && t.ctx.Err() == nil {
		frames, behind, wake := t.feed.after(t.at)
		var to int64
		switch {
		case behind && live:
			out.send(fmt.Appendf(nil, "event: dropped\ndata: {\"position\":%d}\n\n", t.at))
			return nil
		case behind:
			var err error
			if frames, to, err = t.feed.replay(t.ctx, t.at, t.only); err != nil {
				if t.ctx.Err() != nil || errors.Is(err, context.Canceled) {
					return nil
				}
				panic(err) // the status is sent: the middleware writes it down and cuts the connection
			}
		case len(frames) > 0:
			to = frames[len(frames)-1].position
		default:
			live = true
			select {
			case <-wake:
			case <-t.ctx.Done():
			case <-out.ping.C:
				if ping := []byte(": ping\n\n"); t.at == told {
					ok = out.send(ping)
				} else {
					ok = out.send(ping, tell(t.at))
				}
				told = t.at
			}
			continue
		}
		var parts [][]byte
		for _, f := range frames {
			if t.only.wants(f) {
				parts, told = append(parts, f.text), f.position
			}
		}
		if t.at = to; t.at-told >= tellEvery {
			parts, told = append(parts, tell(t.at)), t.at
		}
		if len(parts) > 0 {
			ok = out.send(parts...)
		}
	}
	if !ok && t.ctx.Err() == nil && api.RequestFrom(t.ctx).Method != http.MethodHead {
		panic(http.ErrAbortHandler) // part of an event may have been sent
	}
	return nil
}

// tell moves the client's last event id without an event.
func tell(position int64) []byte { return fmt.Appendf(nil, "id: %d\n\n", position) }

func (o only) wants(f frame) bool {
	return (o.stream == "" || o.stream == f.stream || strings.HasSuffix(o.stream, "/") && strings.HasPrefix(f.stream, o.stream)) &&
		(len(o.kinds) == 0 || slices.Contains(o.kinds, f.kind))
}
