package writeapi

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/commands"
	"github.com/wheelrefinery/refinery/eventlog"
	"github.com/wheelrefinery/refinery/internal/fault"
	"github.com/wheelrefinery/refinery/internal/wheel"
)

// mostWheel is the most bytes of a wheel; the contract's x-max-body says the same.
const mostWheel = 1 << 30

// artifactURL is where a wheel is, relative to the API's address.
func artifactURL(filename string) string { return "/artifacts/" + url.PathEscape(filename) }

// PutArtifact is PUT /artifacts/{filename}. Only a wheel that is what its name and its worker say gets into the store; one whose command
// is then refused stays there without anything that refers to it.
func (s *Server) PutArtifact(ctx context.Context, r api.PutArtifactRequestObject) (api.PutArtifactResponseObject, error) {
	parts := strings.Split(r.Params.XBuild, "/") // four, says the contract
	id, err := buildID(api.BuildID{Name: parts[0], Version: parts[1], PythonTag: parts[2], PlatformTag: parts[3]})
	if err != nil {
		return nil, err
	}
	name, err := wheel.ParseFilename(r.Filename)
	if err != nil {
		return nil, err
	}
	if name.Project != id.Name || !wheel.SameVersion(name.Version, id.Version) {
		return nil, fault.New(fault.Invalid, "The filename and X-Build disagree about the project or its version.")
	}
	var w *wheel.Wheel
	sum, size, err := s.Wheels.Put(ctx, r.Body, mostWheel, func(content io.ReaderAt, sum string, size int64) error {
		if sum != r.Params.XContentSHA256 {
			return fault.New(fault.Invalid, "The body's SHA-256 is not that of X-Content-SHA256. Send it again.")
		}
		var err error
		w, err = wheel.Read(r.Filename, content, size)
		return err
	})
	if err != nil {
		return nil, err
	}
	metadata, _, err := s.Wheels.Put(ctx, bytes.NewReader(w.Metadata), int64(len(w.Metadata)), nil)
	if err != nil {
		return nil, err
	}
	c := commands.PublishArtifact{
		Filename: r.Filename, SHA256: sum, Size: size, Project: w.Project, Version: w.Version, Tags: w.Tags,
		RequiresPython: w.RequiresPython, MetadataSHA256: metadata, Build: id, Attempt: r.Params.XAttempt,
	}
	return send(ctx, s, meta(ctx, ""), c, func(commands.Artifact, eventlog.Outcome) api.Answer {
		location := artifactURL(r.Filename)
		return api.Answer{
			Status: http.StatusCreated, Header: http.Header{"Location": {location}},
			Body: api.ArtifactAnswer{Filename: r.Filename, SHA256: sum, Size: size, URL: location},
		}
	})
}

// YankArtifact is POST /artifacts/{filename}/yank.
func (s *Server) YankArtifact(ctx context.Context, r api.YankArtifactRequestObject) (api.YankArtifactResponseObject, error) {
	c := commands.YankArtifact{Filename: r.Filename, Yanked: true}
	if b := r.Body; b != nil {
		c.Yanked, c.Reason = b.Yanked == nil || *b.Yanked, b.Reason
	}
	return send(ctx, s, meta(ctx, ""), c, func(a commands.Artifact, _ eventlog.Outcome) api.Answer {
		return api.Answer{Status: http.StatusOK, Body: api.YankAnswer{Filename: r.Filename, Yanked: a.Yanked, YankReason: a.Reason}}
	})
}
