package worker

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os/user"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/wheelrefinery/refinery/api"
)

// The source distribution that a proof plans and builds. It needs nothing from any index.
//
//go:embed smoke
var smokeFiles embed.FS

const (
	smokeName    = "refinery-smoke"
	smokeVersion = "1.0"
	smokeSdist   = "refinery_smoke-1.0.tar.gz"
	smokeTime    = 4 * time.Minute
)

// smoke proves that this worker can plan and build, and reports what it found.
func (w *Worker) smoke(ctx context.Context, id uuid.UUID) {
	ctx, cancel := context.WithTimeout(ctx, smokeTime)
	defer cancel()
	began := time.Now()
	r := api.SmokeReport{
		Worker: w.ID, PythonVersion: w.tags.PythonVersion, Uv: strings.TrimPrefix(requirements[0], "uv=="), Program: w.version, Failures: []string{},
		Limits: api.SmokeLimits{
			TimeoutSeconds: int64(w.Timeout.Seconds()), MemoryBytes: w.Memory, DiskBytes: w.Disk, Processes: int64(w.Processes),
		},
	}
	if err := w.prove(ctx, &r); err != nil {
		r.Failures = []string{oneLine(err.Error())}
		if f, ok := errors.AsType[*fault](err); ok {
			r.Failures = append(r.Failures, evidence(f.Evidence)...)
		}
		r.Failures = r.Failures[:min(len(r.Failures), evidenceLines)]
	}
	r.Ok, r.DurationMS = len(r.Failures) == 0, time.Since(began).Milliseconds()
	w.Logger.Info("proved that this worker works", "ok", r.Ok, "failures", r.Failures, "ms", r.DurationMS)
	err := repeat(ctx, func(ctx context.Context) (int, *api.Problem, error) {
		a, err := w.client.RecordSmokeWithResponse(ctx, id, nil, r)
		if err != nil {
			return 0, nil, err
		}
		return a.StatusCode(), a.ApplicationProblemJSONDefault, nil
	})
	if err != nil && !isLost(err) {
		w.Logger.Warn("what was proved could not be reported", "error", err)
	}
}

// prove plans and builds as for a run, from an index of its own that has the one distribution.
func (w *Worker) prove(ctx context.Context, r *api.SmokeReport) error {
	index, err := serveSmoke(ctx)
	if err != nil {
		return err
	}
	defer index.Close()
	s, err := w.newScene(debugLog{w.Logger})
	if err != nil {
		return err
	}
	defer s.close()
	s.upstream = "http://" + index.Addr + "/simple/"
	none := "http://" + index.Addr + "/none/"
	box, err := s.box("build")
	if err != nil {
		return err
	}
	r.User = userName(box.who.uid)
	if gcc := s.serve(ctx, request{Box: "build", Argv: []string{"/usr/bin/env", "gcc", "--version"}, TimeoutMS: time.Minute.Milliseconds()}); gcc.Code == 0 {
		r.Gcc, _, _ = strings.Cut(gcc.Output, "\n")
		r.Gcc = oneLine(r.Gcc[:min(len(r.Gcc), 200)])
	}
	began := time.Now()
	var plan api.PlanReport
	if err := s.ask(ctx, planTimeout, map[string]any{
		"do": "plan", "requirements": smokeName + "==" + smokeVersion, "strategy": "pinned", "build_mode": "all", "index_url": none,
	}, &plan); err != nil {
		return fmt.Errorf("planning: %w", err)
	}
	r.PlanMS = time.Since(began).Milliseconds()
	if len(plan.Nodes) != 1 || plan.Nodes[0].Action != api.ActionBuild {
		return fmt.Errorf("planning: the plan has %d wheels, and should have one to build", len(plan.Nodes))
	}
	began = time.Now()
	var p prepared
	if err := s.ask(ctx, w.Timeout, map[string]any{
		"do": "prepare", "name": smokeName, "version": smokeVersion, "sdist": plan.Nodes[0].Sdist, "index_url": none,
	}, &p); err != nil {
		return fmt.Errorf("preparing the build: %w", err)
	}
	log := &logStream{limit: w.Log, post: func(context.Context, int, string) error { return nil }} // only its end is of use
	if err := w.runBackend(ctx, box, log, p, map[string]string{}); err != nil {
		return fmt.Errorf("building: %w", err)
	}
	checked, err := w.checkWheel(ctx, s, smokeName, smokeVersion)
	if err != nil {
		return err
	}
	r.BuildMS = time.Since(began).Milliseconds()
	if r.Wheel = checked.Filename; checked.Problem != "" {
		return fmt.Errorf("the wheel: %s", checked.Problem)
	}
	return nil
}

// userName is the name of a user where the system knows one.
func userName(uid int) string {
	if uid < 0 {
		if u, err := user.Current(); err == nil {
			return u.Username
		}
		return ""
	}
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		return u.Username
	}
	return strconv.Itoa(uid)
}

// serveSmoke serves an index that has the one distribution, on this machine, until it is closed.
func serveSmoke(ctx context.Context) (*http.Server, error) {
	sdist, err := makeSmokeSdist()
	if err != nil {
		return nil, fmt.Errorf("make the source distribution of the proof: %w", err)
	}
	sum := sha256.Sum256(sdist)
	page, err := json.Marshal(map[string]any{
		"meta": map[string]string{"api-version": "1.0"}, "name": smokeName, "files": []any{map[string]any{
			"filename": smokeSdist, "url": "/files/" + smokeSdist, "hashes": map[string]string{"sha256": hex.EncodeToString(sum[:])}, "size": len(sdist),
		}},
	})
	if err != nil {
		return nil, fmt.Errorf("make the index of the proof: %w", err)
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("serve the index of the proof: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /simple/"+smokeName+"/", func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Content-Type", "application/vnd.pypi.simple.v1+json")
		_, _ = rw.Write(page)
	})
	mux.HandleFunc("GET /files/"+smokeSdist, func(rw http.ResponseWriter, r *http.Request) {
		http.ServeContent(rw, r, "", time.Time{}, bytes.NewReader(sdist))
	})
	server := &http.Server{Addr: l.Addr().String(), Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = server.Serve(l) }() // ends with Close
	return server, nil
}

// makeSmokeSdist packs the files, to the same bytes each time.
func makeSmokeSdist() ([]byte, error) {
	entries, err := smokeFiles.ReadDir("smoke")
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	t := tar.NewWriter(z)
	for _, e := range entries {
		data, err := smokeFiles.ReadFile("smoke/" + e.Name())
		if err != nil {
			return nil, err
		}
		err = t.WriteHeader(&tar.Header{
			Name: strings.TrimSuffix(smokeSdist, ".tar.gz") + "/" + e.Name(), Mode: 0o644, Size: int64(len(data)), ModTime: time.Unix(315532800, 0),
		})
		if err == nil {
			_, err = t.Write(data)
		}
		if err != nil {
			return nil, err
		}
	}
	err = errors.Join(t.Close(), z.Close())
	return out.Bytes(), err
}
