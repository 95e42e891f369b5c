package readapi

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/projections"
)

// GetBulk answers GET /builds/bulk/{id}.
func (s *Server) GetBulk(ctx context.Context, request api.GetBulkRequestObject) (api.GetBulkResponseObject, error) {
	p := request.Params
	return s.answer(ctx, read{min: p.MinPosition, match: p.IfNoneMatch, params: p}, func() (any, error) {
		rows, err := projections.Query[projections.BulkRow](ctx, s.o.Pool, "from bulks.bulks where id = $1", request.ID)
		if err != nil {
			return nil, err
		}
		r, err := first(rows, "There is no bulk action of this id.")
		return api.Bulk{
			ID: r.ID, Action: api.BulkAction(r.Action), Reason: r.Reason, Actor: r.Actor, RequestedAt: r.RequestedAt,
			FinishedAt: optional(r.FinishedAt), Concerned: r.Total, Applied: r.Applied, Refused: r.Refused, Pending: r.Total - r.Applied - r.Refused,
		}, err
	})
}

// Matching reads the builds that a bulk action's filter finds in one of these statuses, at most limit, and counts all of them.
func Matching(ctx context.Context, pool *pgxpool.Pool, f api.BulkFilter, statuses []api.BuildStatus, limit int) (ids []events.BuildID, total int64, err error) {
	var w where
	w.and("status = any(%s::text[])", convert(statuses, func(s api.BuildStatus) string { return string(s) }))
	w.project("name", optional(f.Package))
	w.version(optional(f.Version))
	equal(&w, "python_tag", optional(f.PythonTag))
	equal(&w, "platform_tag", optional(f.PlatformTag))
	equal(&w, "run_id", optional(f.RunID))
	equal(&w, "class", optional(string(f.Class)))
	if err := pool.QueryRow(ctx, "select count(*) from builds.builds"+w.String(), w.args...).Scan(&total); err != nil {
		return nil, 0, fmt.Errorf("count builds: %w", err)
	}
	rows, err := projections.Query[projections.Target](ctx, pool, fmt.Sprintf("from builds.builds%s order by position limit %d", &w, limit), w.args...)
	return convert(rows, projections.Target.Build), total, err
}
