package readapi

import (
	"context"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/projections"
)

var newest = keys{columns: "position", n: 1, descending: true}

func historyPosition(r projections.HistoryRow) []int64 { return []int64{r.Position} }

// ListHistory answers GET /history.
func (s *Server) ListHistory(ctx context.Context, request api.ListHistoryRequestObject) (api.ListHistoryResponseObject, error) {
	p := request.Params
	return s.answer(ctx, read{min: p.MinPosition, match: p.IfNoneMatch, models: []string{"history"}}, func() (any, error) {
		var w where
		w.name(p.Package)
		w.version(p.Version)
		if p.Status != nil {
			w.and("status = any(%s::text[])", texts(*p.Status))
		}
		if p.RunID != nil {
			w.and("run_id = %s", *p.RunID)
		}
		if p.PythonTag != nil {
			w.and("python_tag = %s", *p.PythonTag)
		}
		if p.PlatformTag != nil {
			w.and("platform_tag = %s", *p.PlatformTag)
		}
		if p.From != nil {
			w.and("time >= %s", *p.From)
		}
		if p.To != nil {
			w.and("time < %s", *p.To)
		}
		rows, next, err := list(ctx, s, "history.entries", w, newest, historyPosition, p.Limit, p.Cursor)
		return page{api.HistoryList{Items: convert(rows, historyEntry), Next: next}, link(p, next)}, err
	})
}

// ListRecent answers GET /recent.
func (s *Server) ListRecent(ctx context.Context, request api.ListRecentRequestObject) (api.ListRecentResponseObject, error) {
	p := request.Params
	return s.answer(ctx, read{min: p.MinPosition, match: p.IfNoneMatch, models: []string{"history"}}, func() (any, error) {
		var w where
		w.name(p.Package)
		if p.Status != nil {
			w.and("status = any(%s::text[])", texts(*p.Status))
		}
		rows, _, err := list(ctx, s, "history.entries", w, newest, historyPosition, p.Limit, nil)
		return api.HistoryList{Items: convert(rows, historyEntry)}, err
	})
}

func historyEntry(r projections.HistoryRow) api.HistoryEntry {
	return api.HistoryEntry{
		Position: r.Position, Time: r.Time, Name: r.Name, Version: r.Version, PythonTag: r.PythonTag, PlatformTag: r.PlatformTag,
		Status: api.HistoryStatus(r.Status), Attempt: r.Attempt, RunID: optional(r.Run), Worker: r.Worker, Class: api.Class(r.Class),
		Reason: r.Reason, Wheel: r.Wheel, SHA256: r.SHA256, Size: r.Size, DurationMS: r.DurationMS,
	}
}

func texts[S ~string](values []S) []string {
	return convert(values, func(v S) string { return string(v) })
}
