package readapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"strings"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/projections"
)

// logStream sends the lines of a log from lines.from on, as they come, until the attempt has ended.
type logStream struct {
	ctx    context.Context
	server *Server
	build  projections.BuildRow // with the attempt
	lines  span
	header http.Header
}

func (t *logStream) with(header http.Header) { t.header = header }

// VisitGetLogResponse follows until the attempt has ended, the client leaves, or the server stops.
func (t *logStream) VisitGetLogResponse(w http.ResponseWriter) error {
	feed := t.server.feed
	if err := feed.join(); err != nil {
		return err
	}
	defer feed.leave()
	maps.Copy(w.Header(), t.header)
	out, ok := startSSE(t.ctx, w, t.lines.from-1)
	defer out.end()
	for ok && t.ctx.Err() == nil {
		at := feed.position()
		if err := t.cover(at); err != nil {
			return t.broken(err)
		}
		total, complete, err := t.server.extent(t.ctx, t.lines.stream)
		if err != nil {
			return t.broken(err)
		}
		t.lines.to = total
		if ok, err = t.send(out); err != nil {
			return t.broken(err)
		}
		if ok && complete {
			out.send(fmt.Appendf(nil, "event: end\ndata: {\"total_lines\":%d}\n\n", total))
			return nil
		}
		if ok {
			ok = t.changed(out, at)
		}
	}
	if !ok && t.ctx.Err() == nil && api.RequestFrom(t.ctx).Method != http.MethodHead {
		panic(http.ErrAbortHandler) // part of an event may have been sent
	}
	return nil
}

// cover waits until the read models show the log up to a position; when one of them hangs, the next look shows more.
func (t *logStream) cover(position int64) error {
	ctx, cancel := context.WithTimeout(t.ctx, waitMost)
	defer cancel()
	if err := t.server.o.Wait(ctx, position); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}

// broken ends a stream that cannot go on: its status is sent, so the middleware writes the error down and cuts the connection.
func (t *logStream) broken(err error) error {
	if t.ctx.Err() != nil {
		return nil
	}
	panic(err)
}

// send sends the lines of the span.
func (t *logStream) send(out *sse) (ok bool, err error) {
	for t.lines.from <= t.lines.to {
		part, err := t.lines.part(t.ctx, false)
		if err != nil || len(part) == 0 {
			return true, err
		}
		for _, p := range part {
			var text []byte
			line := max(t.lines.from, int64(p.FirstLine))
			for s := range strings.SplitSeq(strings.TrimSuffix(t.lines.of(p), "\n"), "\n") {
				data, err := json.Marshal(struct {
					Line int64  `json:"line"`
					Text string `json:"text"`
				}{line, s})
				if err != nil {
					return false, fmt.Errorf("encode line %d: %w", line, err)
				}
				text = fmt.Appendf(text, "id: %d\nevent: line\ndata: %s\n\n", line, data)
				line++
			}
			if t.lines.from = line; !out.send(text) {
				return false, nil
			}
		}
	}
	return true, nil
}

// changed returns when something happened behind at to the log or its build, or now and then; false when the client has gone.
func (t *logStream) changed(out *sse, at int64) bool {
	build := t.build.Build().Stream()
	for {
		frames, behind, wake := t.server.feed.after(at)
		if behind {
			return true
		}
		for _, f := range frames {
			if at = f.position; f.stream == t.lines.stream || f.stream == build {
				return true
			}
		}
		if len(frames) > 0 {
			continue
		}
		select {
		case <-wake:
		case <-t.ctx.Done():
			return true
		case <-out.ping.C:
			return out.send([]byte(": ping\n\n")) // and a look, in case one was in vain
		}
	}
}
