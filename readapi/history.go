package readapi

import (
	"context"
	"fmt"
	"time"

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
		if err := w.during(p.From, p.To); err != nil {
			return nil, err
		}
		if p.HintID != nil {
			w.and("position in (select position from history.hints where hint = %s)", *p.HintID)
		}
		rows, next, err := historyList.read(ctx, s.db, w, p.Limit, p.Cursor)
		if err != nil {
			return nil, err
		}
		items := convert(rows, historyEntry)
		return page{api.HistoryList{Items: items, Next: next}, next}, s.hinted(ctx, items)
	})
}

// during adds the condition of a span of time. Positions in order have times in order, so it is one of positions, and the order stays.
func (w *where) during(from, to *time.Time) error {
	if from != nil && to != nil && to.Before(*from) {
		return invalid("to", "must not be before from")
	}
	const bound = `position %s coalesce((select position from history.entries where time >= %%s order by time, position limit 1), 9223372036854775807)`
	if from != nil {
		w.and(fmt.Sprintf(bound, ">="), *from)
	}
	if to != nil {
		w.and(fmt.Sprintf(bound, "<"), *to)
	}
	return nil
}

// ListRecent answers GET /recent: one page, without a next.
func (s *Server) ListRecent(ctx context.Context, request api.ListRecentRequestObject) (api.ListRecentResponseObject, error) {
	p := request.Params
	return s.answer(ctx, read{min: p.MinPosition, match: p.IfNoneMatch, params: p, models: []string{"history"}}, func() (any, error) {
		var w where
		w.project("name", p.Package)
		oneOf(&w, "status", p.Status)
		rows, _, err := historyList.read(ctx, s.db, w, p.Limit, nil)
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
