package writeapi

import (
	"context"
	"net/http"
	"slices"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/commands"
	"github.com/wheelrefinery/refinery/eventlog"
	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/fault"
)

// concerned are the statuses in which a build can be the object of a bulk action.
var concerned = map[string][]api.BuildStatus{
	commands.BulkRetry:    {api.BuildStatusFailed, api.BuildStatusCancelled, api.BuildStatusSkipped},
	commands.BulkCancel:   {api.BuildStatusPlanned, api.BuildStatusQueued, api.BuildStatusRetrying, api.BuildStatusLeased, api.BuildStatusBuilding},
	commands.BulkPriority: {api.BuildStatusQueued, api.BuildStatusRetrying},
}

// sampled is how many builds a dry run shows.
const sampled = 20

// BulkBuilds is POST /builds/bulk.
func (s *Server) BulkBuilds(ctx context.Context, r api.BulkBuildsRequestObject) (api.BulkBuildsResponseObject, error) {
	b := r.Body
	m := meta(ctx, "")
	c := commands.RequestBulk{
		Bulk: m.ID, Action: string(b.Action), Priority: b.Priority, Recipes: recipes(b.Recipes), Reason: b.Reason,
	}
	if err := c.Validate(); err != nil {
		return nil, err
	}
	// What it means is the filter: sent again under the same key, that may find other builds.
	var err error
	if m.Digest, err = digest(ctx, c.Name(), b); err != nil {
		return nil, err
	}
	most := commands.MostBulk
	if b.DryRun {
		most = sampled
	}
	builds, total, err := s.Matching(ctx, b.Filter, statuses(b), most)
	if err != nil {
		return nil, err
	}
	if b.DryRun {
		answer := api.BulkPreview{Action: b.Action, Concerned: total, Sample: make([]api.BuildID, len(builds))}
		for i, id := range builds {
			answer.Sample[i] = named(id)
		}
		return api.Answer{Status: http.StatusOK, Body: answer}, nil
	}
	if total > int64(most) {
		return nil, fault.New(fault.Invalid, "It concerns %d builds, and one request may concern %d: narrow the filter, for example by package or run_id.", total, most)
	}
	c.Builds = builds
	return send(ctx, s, m, c, func(state commands.Bulk, _ eventlog.Outcome) api.Answer {
		return api.Answer{
			Status: http.StatusCreated, Header: http.Header{"Location": {"/builds/bulk/" + m.ID.String()}},
			Body: api.BulkAnswer{ID: m.ID, Action: api.BulkAction(state.Action), Concerned: state.Total},
		}
	})
}

// statuses are those that the action concerns and the filter does not leave out.
func statuses(b *api.BulkRequest) []api.BuildStatus {
	return slices.DeleteFunc(slices.Clone(concerned[string(b.Action)]), func(s api.BuildStatus) bool {
		return len(b.Filter.Status) > 0 && !slices.Contains(b.Filter.Status, s)
	})
}

// RetryBuild is POST /builds/…/retry.
func (s *Server) RetryBuild(ctx context.Context, r api.RetryBuildRequestObject) (api.RetryBuildResponseObject, error) {
	id, err := buildID(api.BuildID{Name: r.Name, Version: r.Version, PythonTag: r.PythonTag, PlatformTag: r.PlatformTag})
	if err != nil {
		return nil, err
	}
	c := commands.RetryBuild{Build: id}
	if b := r.Body; b != nil {
		c.Recipes, c.Priority = recipes(b.Recipes), b.Priority
	}
	return send(ctx, s, meta(ctx, ""), c, func(b commands.Build, _ eventlog.Outcome) api.Answer {
		return api.Answer{Status: http.StatusOK, Body: buildAnswer(id, b)}
	})
}

// PrioritiseBuild is POST /builds/…/priority.
func (s *Server) PrioritiseBuild(ctx context.Context, r api.PrioritiseBuildRequestObject) (api.PrioritiseBuildResponseObject, error) {
	id, err := buildID(api.BuildID{Name: r.Name, Version: r.Version, PythonTag: r.PythonTag, PlatformTag: r.PlatformTag})
	if err != nil {
		return nil, err
	}
	c := commands.ChangePriority{Build: id, Priority: r.Body.Priority}
	return send(ctx, s, meta(ctx, ""), c, func(b commands.Build, _ eventlog.Outcome) api.Answer {
		return api.Answer{Status: http.StatusOK, Body: buildAnswer(id, b)}
	})
}

func recipes(list []api.Recipe) (out []events.Recipe) {
	for _, r := range list {
		out = append(out, events.Recipe{Kind: string(r.Kind), Items: r.Items})
	}
	return out
}
