package readapi

import (
	"context"
	"slices"
	"strings"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/fault"
	"github.com/wheelrefinery/refinery/projections"
)

const (
	mostLines  = 10_000
	mostChunks = 64 // of at most 64 KiB
)

// GetLog answers GET /logs/{name}/{version}. An answer holds at most mostLines lines of mostChunks chunks: the first that were asked for,
// with tail the last.
func (s *Server) GetLog(ctx context.Context, request api.GetLogRequestObject) (api.GetLogResponseObject, error) {
	p := request.Params
	return s.answer(ctx, read{min: p.MinPosition, match: p.IfNoneMatch, models: []string{"builds", "logs"}}, func() (any, error) {
		switch {
		case p.Tail != nil && (p.From != nil || p.To != nil):
			return nil, invalid("tail", "does not go with from or to")
		case p.Tail != nil && (*p.Tail < 1 || *p.Tail > mostLines):
			return nil, invalid("tail", "must be from 1 to %d", mostLines)
		case p.From != nil && *p.From < 1:
			return nil, invalid("from", "must be at least 1")
		case p.From != nil && p.To != nil && *p.To < *p.From:
			return nil, invalid("to", "must not be before from")
		}
		b, err := s.logged(ctx, request)
		if err != nil {
			return nil, err
		}
		attempt := b.Attempt
		if p.Attempt != nil {
			attempt = *p.Attempt
		}
		if attempt < 1 || attempt > b.Attempt {
			return nil, fault.New(fault.NotFound, "The build has no such attempt; its last is number %d.", b.Attempt)
		}
		out, err := s.lines(ctx, b.Build().Log(attempt), p)
		if err != nil {
			return nil, err
		}
		out.Name, out.Version, out.PythonTag, out.PlatformTag, out.Attempt = b.Name, b.Version, b.PythonTag, b.PlatformTag, attempt
		if p.Format != nil && string(*p.Format) == "text" {
			if len(out.Lines) == 0 {
				return "", nil
			}
			return strings.Join(out.Lines, "\n") + "\n", nil
		}
		return out, nil
	})
}

// logged is the one build that the request is about.
func (s *Server) logged(ctx context.Context, request api.GetLogRequestObject) (projections.BuildRow, error) {
	var w where
	w.and("name = %s", events.NormalizeName(request.Name))
	w.version(&request.Version)
	if request.Params.PythonTag != nil {
		w.and("python_tag = %s", *request.Params.PythonTag)
	}
	if request.Params.PlatformTag != nil {
		w.and("platform_tag = %s", *request.Params.PlatformTag)
	}
	rows, err := projections.Query[projections.BuildRow](ctx, s.DB, "from builds.builds"+w.String()+" limit 2", w.args...)
	if len(rows) > 1 {
		return rows[0], invalid("python_tag", "is needed, and platform_tag: there are several builds of this version")
	}
	return one(rows, err, "There is no build of this name, version and tags. /builds lists what there is.")
}

// lines reads what p asks for of the log in stream. A log without lines is a log.
func (s *Server) lines(ctx context.Context, stream string, p api.GetLogParams) (api.Log, error) {
	out := api.Log{FirstLine: 1, Lines: []string{}}
	ends, err := projections.Query[projections.LogEnd](ctx, s.DB, "from logs.ends where stream = $1", stream)
	if err != nil {
		return out, err
	}
	out.Complete = len(ends) > 0 // before the lines, so that what is complete has all
	logs, err := projections.Query[projections.LogRow](ctx, s.DB, "from logs.logs where stream = $1", stream)
	if err != nil || len(logs) == 0 {
		return out, err
	}
	total := int64(logs[0].Lines)
	from, to, order := int64(1), total, "first_line"
	if p.Tail != nil {
		from, order = max(1, total-int64(*p.Tail)+1), "first_line desc"
	}
	if p.From != nil {
		from = *p.From
	}
	if p.To != nil {
		to = min(to, *p.To)
	}
	to = min(to, from+mostLines-1)
	out.TotalLines, out.FirstLine = total, from
	chunks, err := projections.Query[projections.LogChunk](ctx, s.DB, `from logs.chunks where stream = $1 and first_line <= $3
		and first_line >= (select coalesce(max(first_line), 0) from logs.chunks where stream = $1 and first_line <= $2)
		order by `+order+` limit $4`, stream, from, to, mostChunks)
	if err != nil {
		return out, err
	}
	if p.Tail != nil {
		slices.Reverse(chunks)
	}
	for i, c := range chunks {
		if i == 0 {
			out.FirstLine = max(from, int64(c.FirstLine))
		}
		n := int64(c.FirstLine)
		for line := range strings.SplitSeq(strings.TrimSuffix(c.Text, "\n"), "\n") {
			if n >= from && n <= to {
				out.Lines = append(out.Lines, line)
			}
			n++
		}
	}
	return out, nil
}
