package readapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/internal/fault"
	"github.com/wheelrefinery/refinery/projections"
)

// What one JSON answer holds at most: the first lines that were asked for, with tail the last. As text, all are sent.
const (
	mostLines = 10_000
	mostText  = 4 << 20 // bytes
)

const (
	partPieces = 64              // of a log that are read at once, of about 8 KiB
	textTime   = 2 * time.Minute // for a client to take them
)

// GetLog answers GET /logs/{name}/{version}.
func (s *Server) GetLog(ctx context.Context, request api.GetLogRequestObject) (api.GetLogResponseObject, error) {
	p := request.Params
	follow := p.Follow != nil && *p.Follow
	var visit interface {
		api.GetLogResponseObject
		with(header http.Header)
	}
	answer, err := s.answer(ctx, read{min: p.MinPosition, match: p.IfNoneMatch, params: p, aged: follow}, func() (any, error) {
		if p.Tail != nil && (p.From != nil || p.To != nil) {
			return nil, invalid("tail", "does not go with from or to")
		}
		if p.From != nil && p.To != nil && *p.To < *p.From {
			return nil, invalid("to", "must not be before from")
		}
		if follow && (p.To != nil || p.Format != nil) {
			return nil, invalid("follow", "does not go with to or format")
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
		switch {
		case follow:
			if p.LastEventID != nil {
				lines.from = *p.LastEventID + 1
			}
			visit = &logStream{ctx: ctx, server: s, build: b, lines: lines}
			return nil, nil
		case p.Format != nil && *p.Format == api.Text:
			filename := fmt.Sprintf("%s-%s-%s-%s-%d.log", b.Name, b.Version, b.PythonTag, b.PlatformTag, b.Attempt)
			visit, err = newLogText(ctx, lines, filename)
			return nil, err
		}
		out.FirstLine, out.Lines, err = lines.read(ctx, p.Tail != nil)
		return out, err
	})
	if err == nil && visit != nil {
		visit.with(answer.Header)
		return visit, nil
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
	if !tail && l.to-l.from >= mostLines {
		l.to = l.from + mostLines - 1
	}
	var all []projections.LogPiece
	size := 0
	for rest := l; rest.from <= rest.to; {
		part, err := rest.part(ctx, tail)
		if err != nil {
			return 0, nil, err
		}
		if len(part) == 0 {
			break
		}
		for _, p := range part {
			if size += len(p.Text); size > mostText {
				rest.to = 0
				break
			}
			all = append(all, p)
		}
		if last := part[len(part)-1]; tail {
			rest.to = min(rest.to, int64(last.FirstLine)-1)
		} else {
			rest.from = int64(last.FirstLine + last.Lines)
		}
	}
	if tail {
		slices.Reverse(all)
	}
	lines := []string{}
	for i, p := range all {
		if i == 0 {
			l.from = max(l.from, int64(p.FirstLine))
		}
		if text := l.of(p); text != "" {
			lines = slices.AppendSeq(lines, strings.SplitSeq(strings.TrimSuffix(text, "\n"), "\n"))
		}
	}
	return l.from, lines, nil
}

// part is the first pieces of the span, with tail the last, the last first.
func (l span) part(ctx context.Context, tail bool) ([]projections.LogPiece, error) {
	direction := ""
	if tail {
		direction = " desc"
	}
	return projections.Query[projections.LogPiece](ctx, l.pool, fmt.Sprintf("%s order by first_line%s limit %d", piecesOf, direction, partPieces),
		l.stream, l.from, l.to)
}

// piecesOf finds the pieces of stream $1 that hold lines $2 to $3.
const piecesOf = `from logs.pieces where stream = $1 and first_line <= $3 and first_line + lines > $2
	and first_line >= (select coalesce(max(first_line), 0) from logs.pieces where stream = $1 and first_line <= $2)`

// of is what the piece holds of the span.
func (l span) of(c projections.LogPiece) string {
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

// logText sends a span as plain text. It holds a few pieces at a time, and no connection while the client reads.
type logText struct {
	ctx      context.Context
	lines    span
	part     []projections.LogPiece
	filename string
	header   http.Header
}

func newLogText(ctx context.Context, lines span, filename string) (*logText, error) {
	part, err := lines.part(ctx, false)
	return &logText{ctx: ctx, lines: lines, part: part, filename: filename}, err
}

func (t *logText) with(header http.Header) { t.header = header }

// VisitGetLogResponse writes the answer.
func (t *logText) VisitGetLogResponse(w http.ResponseWriter) error {
	maps.Copy(w.Header(), t.header)
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Content-Disposition", mime.FormatMediaType("attachment", map[string]string{"filename": t.filename}))
	w.WriteHeader(http.StatusOK)
	if api.RequestFrom(t.ctx).Method == http.MethodHead {
		return nil
	}
	control := http.NewResponseController(w)
	defer func() { _ = control.SetWriteDeadline(time.Time{}) }() // a test's recorder has none
	// From here on the status is sent. The middleware cuts the connection of whoever panics, so that half a log does not look whole.
	for len(t.part) > 0 {
		_ = control.SetWriteDeadline(time.Now().Add(textTime))
		for _, p := range t.part {
			if _, err := io.WriteString(w, t.lines.of(p)); err != nil {
				panic(http.ErrAbortHandler) // the client has gone, or takes too long
			}
			t.lines.from = int64(p.FirstLine + p.Lines)
		}
		if t.lines.from > t.lines.to {
			break
		}
		var err error
		if t.part, err = t.lines.part(t.ctx, false); errors.Is(err, context.Canceled) {
			panic(http.ErrAbortHandler)
		} else if err != nil {
			panic(err)
		}
	}
	return nil
}
