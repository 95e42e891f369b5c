package main

import (
	"archive/zip"
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/wheelrefinery/refinery/api"
)

// chaosWrite is a write that was accepted: what it was, and between which times it took effect.
type chaosWrite struct {
	id        uuid.UUID // of the command
	what      string
	call, ret int64 // ret 0: not known
}

// chaosLook is what a client saw of a stream's version.
type chaosLook struct {
	stream    string
	version   int64
	call, ret int64
}

// answer is one answer, or that there was none.
type chaosAnswer struct {
	status int
	header http.Header
	body   []byte
}

func (c *chaos) send(ctx context.Context, method, url string, body []byte, headers ...string) (chaosAnswer, error) {
	r, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return chaosAnswer{}, err
	}
	if len(body) > 0 {
		r.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	answer, err := chaosHTTP.Do(r)
	if err != nil {
		return chaosAnswer{}, err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if answer.StatusCode == http.StatusInternalServerError {
		c.t.Errorf("%s %s: 500 %s", method, url, text)
	}
	return chaosAnswer{answer.StatusCode, answer.Header, text}, err
}

// write sends a write until it is accepted or refused, to one process after another, always as the same request. What was accepted is kept
// for the check.
func (c *chaos) write(ctx context.Context, r *rand.Rand, method, path string, body any, headers ...string) chaosAnswer {
	data, ok := body.([]byte)
	if !ok && body != nil {
		var err error
		if data, err = json.Marshal(body); err != nil {
			c.t.Error(err)
		}
	}
	headers = append(headers, "Idempotency-Key", strconv.FormatUint(r.Uint64(), 16))
	w := chaosWrite{what: method + " " + path, call: c.now()}
	a := c.insist(ctx, r, method, path, data, headers...)
	w.ret = c.now()
	if a.status == 0 {
		return a
	}
	c.answers.Add(1)
	again := a
	if a.status != http.StatusAccepted && r.IntN(3) == 0 {
		// The same once more: it must be the same command, and its answer names it.
		again = c.insist(ctx, r, method, path, data, append(headers, "Prefer", "respond-async")...)
	} else if a.status == http.StatusAccepted {
		w.ret = 0
	}
	if again.status == http.StatusAccepted {
		id, err := uuid.Parse(strings.TrimPrefix(again.header.Get("Location"), "/commands/"))
		if err != nil {
			c.t.Errorf("%s: 202 without a location: %v", w.what, again.header)
		}
		w.id = id
		c.mu.Lock()
		c.writes = append(c.writes, w)
		c.mu.Unlock()
	}
	return a
}

// insist tries again as long as the answer is that it may.
func (c *chaos) insist(ctx context.Context, r *rand.Rand, method, path string, body []byte, headers ...string) chaosAnswer {
	for {
		a, err := c.send(ctx, method, c.plane(r)+path, body, headers...)
		switch {
		case ctx.Err() != nil:
			return chaosAnswer{}
		case err == nil && a.status < 500:
			return a
		case err == nil && a.status != 503 && a.status != 504 && a.status != 500:
			c.t.Errorf("%s %s: %d %s", method, path, a.status, a.body)
		}
		c.retries.Add(1)
		time.Sleep(time.Duration(20+r.IntN(200)) * time.Millisecond)
	}
}

// client enqueues, cancels, clears and reads.
func (c *chaos) client(ctx context.Context, n int, r *rand.Rand) {
	var names []string
	for i := 0; !c.over() && ctx.Err() == nil; i++ {
		if len(names) == 0 || r.IntN(3) == 0 {
			names = append(names, fmt.Sprintf("chaos-%d-%d", n, i))
			names = names[max(0, len(names)-20):]
		}
		name := names[r.IntN(len(names))]
		stream := "build/" + strings.TrimSuffix(strings.TrimPrefix(path(name, ""), "/builds/"), "/")
		switch k := r.IntN(100); {
		case k < 40:
			a := c.write(ctx, r, "POST", "/queue/enqueue", api.EnqueueRequest{
				Package: name, Version: "1.0", PythonTag: "cp311", PlatformTag: "linux_x86_64", Priority: r.IntN(10),
			})
			if a.status == 200 || a.status == 201 { // another process shows it too
				at := a.header.Get("Refinery-Position")
				url := c.plane(r) + strings.TrimSuffix(path(name, ""), "/") + "?min_position=" + at
				if at != "" {
					if read, err := c.send(ctx, "GET", url, nil); err == nil && read.status < 500 && read.status != 200 {
						c.t.Errorf("%s was enqueued at %s, and is %d: %s", name, at, read.status, read.body)
					}
				}
			} else if a.status != 202 && a.status != 0 {
				c.t.Errorf("enqueue: %d %s", a.status, a.body)
			}
		case k < 55:
			c.write(ctx, r, "POST", path(name, "cancel"), nil)
		case k < 62:
			c.write(ctx, r, "POST", path(name, "priority"), api.PriorityRequest{Priority: r.IntN(10)})
		case k < 66:
			c.write(ctx, r, "POST", path(name, "retry"), nil)
		case k < 68:
			c.write(ctx, r, "POST", "/queue/clear", api.ClearRequest{IncludeLeased: r.IntN(2) == 0})
		case k < 70:
			c.write(ctx, r, "POST", "/queue/pause", nil)
			c.write(ctx, r, "POST", "/queue/resume", nil)
		case k < 88:
			c.look(ctx, r, stream)
		default:
			url := []string{"/queue?limit=20", "/builds?limit=20", "/summary", "/history?limit=10", "/queue/stats", "/workers"}[r.IntN(6)]
			if a, err := c.send(ctx, "GET", c.plane(r)+url, nil); err == nil && a.status < 500 && a.status != 200 {
				c.t.Errorf("%s: %d %s", url, a.status, a.body)
			}
			c.reads.Add(1)
		}
	}
}

// look sees which version a stream has.
func (c *chaos) look(ctx context.Context, r *rand.Rand, stream string) {
	l := chaosLook{stream: stream, call: c.now()}
	a, err := c.send(ctx, "GET", c.plane(r)+"/audit?limit=1&stream="+stream, nil)
	l.ret = c.now()
	c.reads.Add(1)
	if err != nil || a.status != 200 {
		return
	}
	var list api.EventList
	if err := json.Unmarshal(a.body, &list); err != nil {
		c.t.Error(err)
		return
	}
	if len(list.Items) > 0 {
		l.version = list.Items[0].Version
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.looks = append(c.looks, l)
}

// worker leases builds and pretends to build them.
func (c *chaos) worker(ctx context.Context, n int, r *rand.Rand) {
	name := fmt.Sprint("worker-", n)
	ask, err := json.Marshal(api.LeaseRequest{
		Worker: name, Slots: 1, PythonTag: "cp311", PlatformTag: "linux_x86_64", PythonVersion: "3.11.7", Kinds: []api.JobKind{api.JobKindBuild}, WaitSeconds: 1,
	})
	if err != nil {
		c.t.Error(err)
		return
	}
	for !c.over() && ctx.Err() == nil {
		a, err := c.send(ctx, "POST", c.plane(r)+"/worker/lease", ask)
		if err != nil || a.status != 200 {
			time.Sleep(50 * time.Millisecond)
			continue
		}
		var job api.Job
		if err := json.Unmarshal(a.body, &job); err != nil {
			c.t.Error(err)
			continue
		}
		c.leases.Add(1)
		key := fmt.Sprint(job.Build, " ", job.Attempt)
		c.mu.Lock()
		other := c.holders[key]
		c.holders[key] = name
		c.mu.Unlock()
		if other != "" {
			c.t.Errorf("%s was leased by %s and by %s", key, other, name)
		}
		if r.IntN(20) > 0 { // otherwise it dies here, as far as the control plane knows
			c.work(ctx, r, name, job)
		}
	}
}

func (c *chaos) work(ctx context.Context, r *rand.Rand, worker string, job api.Job) {
	b := job.Build
	time.Sleep(time.Duration(r.IntN(100)) * time.Millisecond)
	beat := api.HeartbeatRequest{Worker: worker, Jobs: []api.JobRef{{Kind: api.JobKindBuild, Build: b, Attempt: job.Attempt}}}
	data, err := json.Marshal(beat)
	if err != nil {
		c.t.Error(err)
		return
	}
	c.insist(ctx, r, "POST", "/worker/heartbeat", data)
	c.write(ctx, r, "POST", fmt.Sprintf("/logs/%s/%s?python_tag=%s&platform_tag=%s&attempt=%d", b.Name, b.Version, b.PythonTag, b.PlatformTag, job.Attempt),
		api.LogChunk{Text: "building " + b.Name + "\n"})
	report := api.ResultReport{Worker: worker, Build: b, Attempt: job.Attempt, LogLines: 1, DurationMS: 10}
	if r.IntN(4) == 0 {
		report.Status, report.Class, report.Reason = api.ResultStatusFailed, "compiler", "no gcc"
		c.write(ctx, r, "POST", "/worker/result", report)
		return
	}
	file, content := fakeWheel(c, b)
	sum := sha256.Sum256(content)
	hash := hex.EncodeToString(sum[:])
	a := c.insist(ctx, r, "PUT", "/artifacts/"+file, content, "Content-Type", "application/octet-stream", "X-Content-SHA256", hash,
		"X-Build", strings.Join([]string{b.Name, b.Version, b.PythonTag, b.PlatformTag}, "/"), "X-Attempt", strconv.Itoa(job.Attempt))
	switch a.status {
	case 201, 200, 202, 409, 0: // 409: the lease was taken away
	default:
		c.t.Errorf("wheel: %d %s", a.status, a.body)
	}
	report.Status, report.Wheel = api.ResultStatusBuilt, api.WheelRef{Filename: file, SHA256: hash, Size: int64(len(content))}
	if a := c.write(ctx, r, "POST", "/worker/result", report); a.status == 200 {
		c.built.Add(1)
	}
}

// fakeWheel makes a wheel that is a real one, always the same of a build.
func fakeWheel(c *chaos, b api.BuildID) (file string, content []byte) {
	name := strings.ReplaceAll(b.Name, "-", "_")
	file = fmt.Sprintf("%s-%s-py3-none-any.whl", name, b.Version)
	info := fmt.Sprintf("%s-%s.dist-info/", name, b.Version)
	var out bytes.Buffer
	z := zip.NewWriter(&out)
	for _, f := range [][2]string{
		{name + "/__init__.py", ""},
		{info + "METADATA", fmt.Sprintf("Metadata-Version: 2.1\nName: %s\nVersion: %s\n", b.Name, b.Version)},
		{info + "WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"},
		{info + "RECORD", ""},
	} {
		w, err := z.Create(f[0])
		if err == nil {
			_, err = io.WriteString(w, f[1])
		}
		if err != nil {
			c.t.Error(err)
		}
	}
	if err := z.Close(); err != nil {
		c.t.Error(err)
	}
	return file, out.Bytes()
}

// chaosFollower follows /events, on whichever process answers, from where it has come to.
type chaosFollower struct{ at atomic.Int64 }

func (f *chaosFollower) follow(ctx context.Context, c *chaos, r *rand.Rand) {
	for ctx.Err() == nil {
		if err := f.some(ctx, c, c.plane(r)); err != nil {
			time.Sleep(time.Duration(20+r.IntN(100)) * time.Millisecond)
		}
	}
}

// some follows until the connection ends.
func (f *chaosFollower) some(ctx context.Context, c *chaos, plane string) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second) // and then somewhere else
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, plane+"/events?after=0", nil)
	if err != nil {
		return err
	}
	r.Header.Set("Last-Event-ID", strconv.FormatInt(f.at.Load(), 10))
	answer, err := chaosHTTP.Transport.RoundTrip(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("%d", answer.StatusCode)
	}
	lines := bufio.NewScanner(answer.Body)
	lines.Buffer(nil, 1<<20)
	for kind := ""; lines.Scan(); {
		if text, ok := strings.CutPrefix(lines.Text(), "event: "); ok {
			kind = text
		}
		text, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok || kind == "dropped" {
			continue
		}
		var e api.Event
		if err := json.Unmarshal([]byte(text), &e); err != nil {
			c.t.Errorf("%v: %s", err, text)
			return err
		}
		if before := f.at.Load(); e.Position != before+1 {
			c.t.Errorf("a follower saw %d after %d", e.Position, before)
		}
		f.at.Store(e.Position)
	}
	return lines.Err()
}
