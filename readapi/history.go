package readapi

import (
	"context"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/projections"
)

var historyList = list[projections.HistoryRow]{
	name: "history", from: "history.entries", by: []string{"position"}, desc: true,
	keyOf: func(r projections.HistoryRow) []int64 { return []int64{r.Position} },
}

// ListHistory answers GET /history.
func (s *Server) ListHistory(ctx context.Context, request api.ListHistoryRequestObject) (api.ListHistoryResponseObject, error) {
	p := request.Params
	return s.answer(ctx, read{min: p.MinPosition, match: p.IfNoneMatch, params: p, models: []string{"history"}}, func() (any, error) {
		var w where
		w.project("name", p.Package)
		w.version(p.Version)
		oneOf(&w, "status", p.Status)
		equal(&w, "run_id", p.RunID)
		equal(&w, "python_tag", p.PythonTag)
		equal(&w, "platform_tag", p.PlatformTag)
		if p.From != nil {
			w.and("time >= %s", *p.From)
		}
		if p.To != nil {
			w.and("time < %s", *p.To)
		}
		rows, next, err := historyList.read(ctx, s.o.Pool, w, p.Limit, p.Cursor)
		return page{api.HistoryList{Items: convert(rows, historyEntry), Next: next}, next}, err
	})
}

// ListRecent answers GET /recent: one page, without a next.
func (s *Server) ListRecent(ctx context.Context, request api.ListRecentRequestObject) (api.ListRecentResponseObject, error) {
	p := request.Params
	return s.answer(ctx, read{min: p.MinPosition, match: p.IfNoneMatch, params: p, models: []string{"history"}}, func() (any, error) {
		var w where
		w.project("name", p.Package)
		oneOf(&w, "status", p.Status)
		rows, _, err := historyList.read(ctx, s.o.Pool, w, p.Limit, nil)
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
