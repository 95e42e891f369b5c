package writeapi

import (
	"context"
	"errors"
	"io"
	"mime/multipart"
	"net/http"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/commands"
	"github.com/wheelrefinery/refinery/eventlog"
	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/fault"
)

// SubmitRun is POST /runs. The run's id is its command's.
func (s *Server) SubmitRun(ctx context.Context, r api.SubmitRunRequestObject) (api.SubmitRunResponseObject, error) {
	b := r.JSONBody
	if b == nil {
		var err error
		if b, err = readForm(r.MultipartBody); err != nil {
			return nil, err
		}
	}
	m := meta(ctx, "")
	c := commands.SubmitRun{
		Run: m.ID, Requirements: b.Requirements, Constraints: b.Constraints, Python: b.Python, Platform: b.Platform,
		Strategy: string(b.Strategy), Build: string(b.Build),
	}
	for _, n := range b.Names {
		c.Names = append(c.Names, events.NormalizeName(n))
	}
	return send(ctx, s, m, c, func(run commands.Run, _ eventlog.Outcome) api.Answer {
		return api.Answer{
			Status: http.StatusCreated, Header: http.Header{"Location": {"/runs/" + m.ID.String()}},
			Body: api.RunAnswer{ID: m.ID, State: api.RunState(run.State)},
		}
	})
}

// readForm reads a run from a form. The body is limited already; what the fields hold is checked by the command.
func readForm(form *multipart.Reader) (*api.RunSubmission, error) {
	b := &api.RunSubmission{}
	for {
		part, err := form.NextPart()
		if errors.Is(err, io.EOF) {
			return b, nil
		}
		if err != nil {
			return nil, formError(err)
		}
		data, err := io.ReadAll(part)
		if err != nil {
			return nil, formError(err)
		}
		value := string(data)
		field, ok := map[string]*string{
			"requirements": &b.Requirements, "constraints": &b.Constraints, "python": &b.Python, "platform": &b.Platform,
			"strategy": (*string)(&b.Strategy), "build": (*string)(&b.Build),
		}[part.FormName()]
		switch {
		case part.FormName() == "names":
			b.Names = append(b.Names, value)
		case !ok:
			return nil, fault.New(fault.Invalid, "The form has a field that is not known here.")
		case *field != "":
			return nil, fault.New(fault.Invalid, "The form has a field twice.")
		default:
			*field = value
		}
	}
}

// formError keeps what the middleware's body says of itself and blames the form otherwise.
func formError(err error) error {
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return err
	}
	return fault.New(fault.Invalid, "The form cannot be read to its end. Send it again as multipart/form-data.")
}

// CancelRun is POST /runs/{id}/cancel.
func (s *Server) CancelRun(ctx context.Context, r api.CancelRunRequestObject) (api.CancelRunResponseObject, error) {
	return send(ctx, s, meta(ctx, ""), commands.CancelRun{Run: r.ID, Reason: reason(r.Body)}, func(run commands.Run, _ eventlog.Outcome) api.Answer {
		return api.Answer{Status: http.StatusOK, Body: api.RunAnswer{ID: r.ID, State: api.RunState(run.State), PlanID: run.Plan}}
	})
}

func reason(b *api.ReasonRequest) string {
	if b == nil {
		return ""
	}
	return b.Reason
}

// RecordPlan is POST /plan. The plan's id is its command's.
func (s *Server) RecordPlan(ctx context.Context, r api.RecordPlanRequestObject) (api.RecordPlanResponseObject, error) {
	b, m := r.Body, meta(ctx, r.Body.Worker)
	status := http.StatusOK
	var c commands.Command
	switch planned := b.PythonTag != "" || b.PlatformTag != "" || len(b.Nodes) > 0 || len(b.Edges) > 0; {
	case planned && b.Error == nil && !b.Released:
		status = http.StatusCreated
		c = commands.RecordPlan{
			Run: b.RunID, Attempt: b.Attempt, Plan: m.ID, Worker: b.Worker, PythonTag: b.PythonTag, PlatformTag: b.PlatformTag,
			Nodes: nodes(b.Nodes), Edges: edges(b.Edges), Warnings: b.Warnings, DurationMS: b.DurationMS,
		}
	case b.Error != nil && !planned && !b.Released:
		c = commands.FailPlan{
			Run: b.RunID, Attempt: b.Attempt, Worker: b.Worker, Class: events.Class(b.Error.Class), Reason: b.Error.Reason, Detail: b.Error.Detail,
		}
	case b.Released && !planned && b.Error == nil:
		c = commands.ReleasePlan{Run: b.RunID, Attempt: b.Attempt, Worker: b.Worker, Reason: b.Reason}
	default:
		return nil, fault.New(fault.Invalid, "Send exactly one of these: a plan (python_tag, platform_tag, nodes, edges), error, released.")
	}
	return send(ctx, s, m, c, func(run commands.Run, _ eventlog.Outcome) api.Answer {
		return api.Answer{Status: status, Body: api.PlanAnswer{RunID: b.RunID, State: api.RunState(run.State), PlanID: run.Plan}}
	})
}

func nodes(in []api.Node) []events.Node {
	out := make([]events.Node, len(in))
	for i, n := range in {
		out[i] = events.Node{
			Name: n.Name, Version: n.Version, PythonTag: n.PythonTag, PlatformTag: n.PlatformTag, Action: string(n.Action), Reason: n.Reason,
			Root: n.Root, Sdist: file(n.Sdist), Wheel: file(n.Wheel), Own: n.Own, RequiresPython: n.RequiresPython, Constraints: n.Constraints,
		}
	}
	return out
}

func edges(in []api.Edge) []events.Edge {
	out := make([]events.Edge, len(in))
	for i, e := range in {
		out[i] = events.Edge{From: e.From, To: e.To, Kind: string(e.Kind)}
	}
	return out
}

func file(f api.File) *events.File {
	if f == (api.File{}) {
		return nil
	}
	return &events.File{Filename: f.Filename, URL: f.URL, SHA256: f.SHA256, Size: f.Size}
}

// RecordManifest is POST /manifest.
func (s *Server) RecordManifest(ctx context.Context, r api.RecordManifestRequestObject) (api.RecordManifestResponseObject, error) {
	b := r.Body
	c := commands.RecordManifest{Run: b.RunID, Worker: b.Worker, Entries: make([]events.ManifestEntry, len(b.Entries))}
	for i, e := range b.Entries {
		c.Entries[i] = events.ManifestEntry{
			Name: e.Name, Version: e.Version, PythonTag: e.PythonTag, PlatformTag: e.PlatformTag, Status: string(e.Status),
			Wheel: e.Wheel, SHA256: e.SHA256, Size: e.Size, DurationMS: e.DurationMS, Reason: e.Reason,
		}
	}
	return send(ctx, s, meta(ctx, b.Worker), c, func(commands.Run, eventlog.Outcome) api.Answer {
		return api.Answer{Status: http.StatusCreated, Body: api.ManifestAnswer{RunID: b.RunID, Entries: len(c.Entries)}}
	})
}
