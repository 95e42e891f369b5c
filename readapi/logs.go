package readapi

import (
	"context"
	"errors"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/internal/fault"
	"github.com/wheelrefinery/refinery/projections"
)

// What one JSON answer holds at most: the first lines that were asked for, with tail the last. As text, all are sent.
const (
	mostLines  = 10_000
	mostChunks = 64 // of at most 64 KiB
)

// GetLog answers GET /logs/{name}/{version}.
func (s *Server) GetLog(ctx context.Context, request api.GetLogRequestObject) (api.GetLogResponseObject, error) {
	p := request.Params
	var text *logText
	answer, err := s.answer(ctx, read{min: p.MinPosition, match: p.IfNoneMatch, params: p}, func() (any, error) {
		if p.Tail != nil && (p.From != nil || p.To != nil) {
			return nil, invalid("tail", "does not go with from or to")
		}
		if p.From != nil && p.To != nil && *p.To < *p.From {
			return nil, invalid("to", "must not be before from")
		}
		b, err := s.logged(ctx, request)
		if err != nil {
			return nil, err
		}
		out := api.Log{
			Name: b.Name, Version: b.Version, PythonTag: b.PythonTag, PlatformTag: b.PlatformTag, Attempt: b.Attempt, Lines: []string{},
		}
		stream := b.Build().Log(b.Attempt)
		if out.TotalLines, out.Complete, err = s.extent(ctx, stream); err != nil {
			return nil, err
		}
		lines := span{s.o.Pool, stream, 1, out.TotalLines}
		if p.Tail != nil {
			lines.from = max(1, lines.to-int64(*p.Tail)+1)
		}
		if p.From != nil {
			lines.from = *p.From
		}
		if p.To != nil {
			lines.to = min(lines.to, *p.To)
		}
		if p.Format != nil && *p.Format == api.Text {
			text, err = newLogText(ctx, lines)
			return nil, err
		}
		out.FirstLine, out.Lines, err = lines.read(ctx, p.Tail != nil)
		return out, err
	})
	if err == nil && text != nil {
		text.header = answer.Header
		return text, nil
	}
	return answer, err
}

// logged is the build that the request is about, where tags are missing the one that changed last, with the attempt.
func (s *Server) logged(ctx context.Context, request api.GetLogRequestObject) (projections.BuildRow, error) {
	p := request.Params
	var w where
	w.project("name", &request.Name)
	w.version(&request.Version)
	equal(&w, "python_tag", p.PythonTag)
	equal(&w, "platform_tag", p.PlatformTag)
	rows, err := projections.Query[projections.BuildRow](ctx, s.db, "from builds.builds"+w.String()+" order by updated_position desc limit 1", w.args...)
	if err != nil {
		return projections.BuildRow{}, err
	}
	b, err := first(rows, noBuild)
	switch {
	case err != nil:
	case b.Attempt == 0:
		err = fault.New(fault.NotFound, "This build has not been tried yet, so it has no log.")
	case p.Attempt != nil && *p.Attempt > b.Attempt:
		err = fault.New(fault.NotFound, "The build has no such attempt: its last is number %d.", b.Attempt)
	case p.Attempt != nil:
		b.Attempt = *p.Attempt
	}
	return b, err
}

// extent is how many lines the log has, and whether no more will come.
func (s *Server) extent(ctx context.Context, stream string) (lines int64, complete bool, err error) {
	var all pipeline
	var ends []projections.LogEnd
	var logs []projections.LogRow
	ask(&all, &ends, "from logs.ends where stream = $1", stream) // first, so that what is complete has all lines
	ask(&all, &logs, "from logs.logs where stream = $1", stream)
	if err := all.run(ctx, s.o.Pool); err != nil {
		return 0, false, err
	}
	if len(logs) > 0 {
		lines = int64(logs[0].Lines)
	}
	return lines, len(ends) > 0, nil
}

// span is a part of a log, from and to a line, both included.
type span struct {
	pool     *pgxpool.Pool
	stream   string
	from, to int64
}

// read is the first lines of the span, with tail the last, and the number of the first of them.
func (l span) read(ctx context.Context, tail bool) (int64, []string, error) {
	lines, direction := []string{}, ""
	if tail {
		direction = " desc"
	} else if l.to-l.from >= mostLines {
		l.to = l.from + mostLines - 1
	}
	if l.from > l.to {
		return l.from, lines, nil
	}
	chunks, err := projections.Query[projections.LogChunk](ctx, l.pool, `from logs.chunks where stream = $1 and first_line <= $3
		and first_line >= (select coalesce(max(first_line), 0) from logs.chunks where stream = $1 and first_line <= $2)
		order by first_line`+direction+` limit $4`, l.stream, l.from, l.to, mostChunks)
	if err != nil {
		return 0, nil, err
	}
	if tail {
		slices.Reverse(chunks)
	}
	for i, c := range chunks {
		if i == 0 {
			l.from = max(l.from, int64(c.FirstLine))
		}
		if text := l.of(c); text != "" {
			lines = slices.AppendSeq(lines, strings.SplitSeq(strings.TrimSuffix(text, "\n"), "\n"))
		}
	}
	return l.from, lines, nil
}

// of is what the chunk holds of the span.
func (l span) of(c projections.LogChunk) string {
	at := int64(c.FirstLine)
	start, end := 0, 0
	for end < len(c.Text) && at <= l.to {
		if at == l.from {
			start = end
		}
		n := strings.IndexByte(c.Text[end:], '\n')
		if n < 0 {
			n = len(c.Text) - end - 1
		}
		end += n + 1
		at++
	}
	if at <= l.from {
		return ""
	}
	return c.Text[start:end]
}

// next is the first chunk of the span behind line after; false at the end.
func (l span) next(ctx context.Context, after int64) (projections.LogChunk, bool, error) {
	rows, err := projections.Query[projections.LogChunk](ctx, l.pool, `from logs.chunks where stream = $1 and first_line > $2 and first_line <= $3
		and first_line >= (select coalesce(max(first_line), 0) from logs.chunks where stream = $1 and first_line <= $4)
		order by first_line limit 1`, l.stream, after, l.to, l.from)
	if err != nil || len(rows) == 0 {
		return projections.LogChunk{}, false, err
	}
	return rows[0], true, nil
}

// logText sends a span as plain text. It holds one chunk at a time, and no connection while the client reads.
type logText struct {
	ctx    context.Context
	lines  span
	chunk  projections.LogChunk
	more   bool
	header http.Header
}

func newLogText(ctx context.Context, lines span) (*logText, error) {
	chunk, more, err := lines.next(ctx, 0)
	return &logText{ctx: ctx, lines: lines, chunk: chunk, more: more}, err
}

// VisitGetLogResponse writes the answer.
func (t *logText) VisitGetLogResponse(w http.ResponseWriter) error {
	maps.Copy(w.Header(), t.header)
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(http.StatusOK)
	if api.RequestFrom(t.ctx).Method == http.MethodHead {
		return nil
	}
	// From here on the status is sent. The middleware cuts the connection of whoever panics, so that half a log does not look whole.
	for t.more {
		if _, err := io.WriteString(w, t.lines.of(t.chunk)); err != nil {
			panic(http.ErrAbortHandler) // the client has gone
		}
		var err error
		if t.chunk, t.more, err = t.lines.next(t.ctx, int64(t.chunk.FirstLine)); errors.Is(err, context.Canceled) {
			panic(http.ErrAbortHandler)
		} else if err != nil {
			panic(err)
		}
	}
	return nil
}
