package readapi

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/projections"
)

var hintList = list[projections.HintRow]{
	name: "hints", from: "hints.hints", by: []string{"position"},
	keyOf: func(r projections.HintRow) []int64 { return []int64{r.Position} },
}

// ListHints answers GET /hints.
func (s *Server) ListHints(ctx context.Context, request api.ListHintsRequestObject) (api.ListHintsResponseObject, error) {
	p := request.Params
	return s.answer(ctx, read{min: p.MinPosition, match: p.IfNoneMatch, params: p}, func() (any, error) {
		var w where
		if p.Q != nil {
			w.and("strpos(search, %s) > 0", strings.ToLower(*p.Q))
		}
		if p.Tag != nil {
			w.and("tags @> to_jsonb(%s::text)", *p.Tag)
		}
		equal(&w, "severity", p.Severity)
		rows, next, err := hintList.read(ctx, s.o.Pool, w, p.Limit, p.Cursor)
		return page{api.HintList{Items: convert(rows, hint), Next: next}, next}, err
	})
}

// GetHint answers GET /hints/{id}. Its ETag says all that the answer depends on, so that it can be compared with the hint itself: the
// version, which a change is made to, and the counts.
func (s *Server) GetHint(ctx context.Context, request api.GetHintRequestObject) (api.GetHintResponseObject, error) {
	p := request.Params
	var h projections.HintRow
	a, err := s.answer(ctx, read{min: p.MinPosition, params: p, aged: true}, func() (any, error) {
		rows, err := projections.Query[projections.HintRow](ctx, s.o.Pool, "from hints.hints where id = $1", request.ID)
		if err != nil {
			return nil, err
		}
		h, err = first(rows, "There is no hint of this id. /hints lists what there is.")
		return hint(h), err
	})
	if err != nil {
		return nil, err
	}
	tag := fmt.Sprintf(`"%d.%d.%d.%d"`, h.Version, h.Matched, h.Tried, h.Helped)
	a.Header.Set("ETag", tag)
	if p.IfNoneMatch != nil && (matches(*p.IfNoneMatch, tag) || strings.TrimSpace(*p.IfNoneMatch) == "*") {
		return api.Answer{Status: http.StatusNotModified, Header: a.Header}, nil
	}
	return a, nil
}

func hint(r projections.HintRow) api.Hint {
	h, a := r.Hint, r.Hint.AppliesTo
	return api.Hint{
		ID: r.ID, Version: r.Version, Pattern: h.Pattern, Recipes: convert(h.Recipes, recipe), Note: h.Note, Tags: convert(h.Tags, same),
		Severity: api.Severity(h.Severity), Confidence: h.Confidence, Examples: convert(h.Examples, same),
		AppliesTo: api.AppliesTo{
			Platforms: a.Platforms, Arch: a.Arch, PythonVersions: a.PythonVersions, BuildBackends: a.BuildBackends, Packages: a.Packages,
		},
		Shipped: r.Shipped, UpdatedAt: r.UpdatedAt, Matched: int64(r.Matched), Tried: int64(r.Tried), Helped: int64(r.Helped),
	}
}

// same is for copies that are never nil.
func same[V any](v V) V { return v }

func recipe(r events.Recipe) api.Recipe {
	return api.Recipe{Kind: api.RecipeKind(r.Kind), Items: convert(r.Items, same)}
}

func hintMatch(m events.HintMatch) api.HintMatch {
	return api.HintMatch{Hint: m.Hint, Line: m.Line, Text: m.Text, Recipes: convert(m.Recipes, recipe)}
}

// hinted gives the entries the hints that they have to do with.
func (s *Server) hinted(ctx context.Context, entries []api.HistoryEntry) error {
	at := map[int64]int{}
	for i, e := range entries {
		if e.Status == api.HistoryStatusFailed || e.Status == api.HistoryStatusBuilt {
			at[e.Position] = i
		}
	}
	if len(at) == 0 {
		return nil
	}
	rows, err := projections.Query[projections.HistoryHint](ctx, s.db, "from history.hints where position = any($1) order by position, hint", slices.Collect(maps.Keys(at)))
	for _, r := range rows {
		e := &entries[at[r.Position]]
		e.Hints = append(e.Hints, r.Hint)
	}
	return err
}
