package writeapi

import (
	"context"
	"net/http"
	"net/url"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/commands"
	"github.com/wheelrefinery/refinery/eventlog"
	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/fault"
	"github.com/wheelrefinery/refinery/internal/wheel"
)

// buildID normalises what somebody calls a build.
func buildID(b api.BuildID) (events.BuildID, error) {
	version, err := wheel.NormalizeVersion(b.Version)
	if err != nil {
		return events.BuildID{}, err
	}
	return events.BuildID{Name: events.NormalizeName(b.Name), Version: version, PythonTag: b.PythonTag, PlatformTag: b.PlatformTag}, nil
}

func named(id events.BuildID) api.BuildID {
	return api.BuildID{Name: id.Name, Version: id.Version, PythonTag: id.PythonTag, PlatformTag: id.PlatformTag}
}

func buildAnswer(id events.BuildID, b commands.Build) api.BuildAnswer {
	return api.BuildAnswer{Build: named(id), Status: api.BuildStatus(b.Status), Attempt: b.Attempt}
}

// Enqueue is POST /queue/enqueue. Without tags it means those of the workers, where all have the same.
func (s *Server) Enqueue(ctx context.Context, r api.EnqueueRequestObject) (api.EnqueueResponseObject, error) {
	b := r.Body
	if b.PythonTag == "" || b.PlatformTag == "" {
		python, platform, err := s.tags(ctx)
		if err != nil {
			return nil, err
		}
		if b.PythonTag == "" {
			b.PythonTag = python
		}
		if b.PlatformTag == "" {
			b.PlatformTag = platform
		}
	}
	id, err := buildID(api.BuildID{Name: b.Package, Version: b.Version, PythonTag: b.PythonTag, PlatformTag: b.PlatformTag})
	if err != nil {
		return nil, err
	}
	m, c := meta(ctx, ""), commands.EnqueueBuild{Build: id, Priority: b.Priority, Recipes: recipes(b.Recipes)}
	if m.Digest, err = digest(ctx, c.Name(), c); err != nil { // that its wheel is yanked is no part of the request
		return nil, err
	}
	c.Rebuild = s.Yanked(ctx, id)
	return send(ctx, s, m, c, func(build commands.Build, o eventlog.Outcome) api.Answer {
		a := api.Answer{
			Status: http.StatusOK, Header: http.Header{"Location": {location(id)}},
			Body: api.EnqueueAnswer{
				Build: named(id), Status: api.BuildStatus(build.Status), Attempt: build.Attempt, Priority: build.Priority,
				Deduplicated: true,
			},
		}
		if o.First > 0 && build.Status == "queued" { // otherwise it waited already, or its wheel is there
			body := a.Body.(api.EnqueueAnswer)
			body.Deduplicated = false
			a.Status, a.Body = http.StatusCreated, body
		}
		return a
	})
}

func location(id events.BuildID) string {
	return "/builds/" + url.PathEscape(id.Name) + "/" + url.PathEscape(id.Version) + "/" + id.PythonTag + "/" + id.PlatformTag
}

// CancelBuild is POST /builds/…/cancel.
func (s *Server) CancelBuild(ctx context.Context, r api.CancelBuildRequestObject) (api.CancelBuildResponseObject, error) {
	id, err := buildID(api.BuildID{Name: r.Name, Version: r.Version, PythonTag: r.PythonTag, PlatformTag: r.PlatformTag})
	if err != nil {
		return nil, err
	}
	return send(ctx, s, meta(ctx, ""), commands.CancelBuild{Build: id, Reason: reason(r.Body)}, func(b commands.Build, _ eventlog.Outcome) api.Answer {
		return api.Answer{Status: http.StatusOK, Body: buildAnswer(id, b)}
	})
}

// RecordResult is POST /worker/result.
func (s *Server) RecordResult(ctx context.Context, r api.RecordResultRequestObject) (api.RecordResultResponseObject, error) {
	b := r.Body
	id, err := buildID(b.Build)
	if err != nil {
		return nil, err
	}
	var c commands.Command
	switch b.Status {
	case api.ResultStatusBuilding:
		c = commands.StartBuild{Build: id, Attempt: b.Attempt}
	case api.ResultStatusBuilt:
		if err := s.stored(b.Wheel); err != nil {
			return nil, err
		}
		c = commands.SucceedBuild{
			Build: id, Attempt: b.Attempt, Worker: b.Worker, SdistSHA256: b.SdistSHA256, StartedAt: b.StartedAt, DurationMS: b.DurationMS,
			LogLines: b.LogLines,
			Wheel:    events.File{Filename: b.Wheel.Filename, URL: artifactURL(b.Wheel.Filename), SHA256: b.Wheel.SHA256, Size: b.Wheel.Size},
		}
	case api.ResultStatusFailed:
		c = commands.FailBuild{
			Build: id, Attempt: b.Attempt, Worker: b.Worker, Class: events.Class(b.Class), Reason: b.Reason, Evidence: b.Evidence,
			Backend: b.BuildBackend, StartedAt: b.StartedAt, DurationMS: b.DurationMS, LogLines: b.LogLines,
		}
	case api.ResultStatusReleased:
		c = commands.ReleaseBuild{Build: id, Attempt: b.Attempt, Worker: b.Worker, Reason: b.Reason}
	}
	return send(ctx, s, meta(ctx, b.Worker), c, func(build commands.Build, _ eventlog.Outcome) api.Answer {
		return api.Answer{Status: http.StatusOK, Body: buildAnswer(id, build)}
	})
}

// stored says that a worker has uploaded the wheel that it reports.
func (s *Server) stored(w api.WheelRef) error {
	if w == (api.WheelRef{}) {
		return &fault.Error{Code: fault.Invalid, Message: "A built wheel must be named.", Fields: []fault.Field{{Pointer: "/wheel", Detail: "is missing"}}}
	}
	f, err := s.Wheels.Open(w.SHA256)
	if fault.CodeOf(err) == fault.NotFound {
		return &fault.Error{
			Code: fault.Invalid, Message: "Upload the wheel first: PUT /artifacts/{filename}.",
			Fields: []fault.Field{{Pointer: "/wheel/sha256", Detail: "is not that of a wheel that is here"}},
		}
	}
	if err != nil {
		return err
	}
	return f.Close()
}
