package worker

import (
	"bufio"
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/wheelrefinery/refinery/api"
)

//go:embed planner/*.py
var planner embed.FS

// fault is trouble with a class, a reason and evidence: what a failed result says.
type fault struct {
	Class    api.Class `json:"class"`
	Reason   string    `json:"reason"`
	Evidence []string  `json:"detail"`
	Backend  string    `json:"backend"` // of the sdist, where the planner knows it
}

func (f *fault) Error() string { return f.Reason }

// unavailable is the planner's class for a refinery's index that does not answer. Such a job is handed back.
const unavailable api.Class = "unavailable"

// scene is where one job happens: a folder with the planner's part and a box for each name.
type scene struct {
	worker *Worker
	folder string
	log    io.Writer // what the planner says

	upstream string // the index to plan with; empty: the worker's

	mu    sync.Mutex
	boxes map[string]*box
}

func (w *Worker) newScene(log io.Writer) (*scene, error) {
	folder, err := os.MkdirTemp(w.path("work"), fmt.Sprintf("%d-%s-", os.Getpid(), started("self")))
	if err != nil {
		return nil, fmt.Errorf("make a work folder: %w", err)
	}
	s := &scene{worker: w, folder: folder, log: log, boxes: map[string]*box{}}
	for _, name := range []string{"", "plan", "plan/home", "plan/tmp"} {
		who := w.plannerIdentity()
		if name == "" {
			who.uid = -1
		}
		err = errors.Join(err, ensureDir(filepath.Join(folder, name), 0o755, who))
	}
	if err != nil {
		s.close()
		return nil, fmt.Errorf("make a work folder: %w", err)
	}
	return s, nil
}

// close removes everything. What cannot be removed is removed by the next start, and does not change how the job went.
func (s *scene) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	var err error
	for _, b := range s.boxes {
		err = errors.Join(err, b.close())
	}
	if err = errors.Join(err, removeAll(s.folder)); err != nil {
		s.worker.Logger.Warn("a work folder cannot be removed", "folder", s.folder, "error", err)
	}
}

// box returns the box of that name.
func (s *scene) box(name string) (*box, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b := s.boxes[name]; b != nil {
		return b, nil
	}
	b, err := s.worker.newBox(s.folder)
	if err == nil {
		s.boxes[name] = b
	}
	return b, err
}

// request is what the planner asks for; see planner/remote.py.
type request struct {
	ID        int               `json:"id"`
	Box       string            `json:"box"`
	Argv      []string          `json:"argv"`
	Env       map[string]string `json:"env"`
	File      string            `json:"file"`
	TimeoutMS int64             `json:"timeout_ms"`
	Result    json.RawMessage   `json:"result"`
}

type reply struct {
	ID      int    `json:"id"`
	Code    int    `json:"code"`
	Verdict string `json:"verdict"`
	Output  string `json:"output"`
	Result  string `json:"result"`
}

const (
	maxMessage = 64 << 20 // of the planner
	maxResult  = 4 << 20  // of a command in a box
	maxOutput  = 64 << 10 // of a command in a box: the end of it
)

// ask has the planner do a job, and decodes its result. A fault is what the planner found; ctx's cause is returned where it ended.
func (s *scene) ask(ctx context.Context, timeout time.Duration, job map[string]any, result any) error {
	w := s.worker
	upstream, err := s.upstream, error(nil)
	if upstream == "" {
		if upstream, err = w.upstream(ctx); err != nil {
			return err
		}
	}
	job["uv"], job["interpreter"], job["upstream"] = w.path(w.venv, "bin", "uv"), w.tags.Interpreter, upstream
	job["work"], job["cache"] = filepath.Join(s.folder, "plan"), w.path("cache")
	input, err := json.Marshal(job)
	if err != nil {
		return fmt.Errorf("encode the planner's job: %w", err)
	}
	var pipes [6]*os.File // stdin, stdout, stderr: read end, write end
	for i := 0; i < len(pipes); i += 2 {
		if pipes[i], pipes[i+1], err = os.Pipe(); err != nil {
			return fmt.Errorf("start the planner: %w", err)
		}
		defer pipes[i].Close()
		defer pipes[i+1].Close()
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel() // a planner that has answered is not waited for

	var said tail
	wg.Go(func() { _, _ = io.Copy(io.MultiWriter(&said, s.log), pipes[4]) })
	var ended error
	wg.Go(func() {
		b := &box{worker: w, who: w.plannerIdentity(), folder: filepath.Join(s.folder, "plan")}
		r, err := b.run(ctx, command{
			argv: []string{w.path(w.venv, "bin", "python"), "-I", w.path(w.program)}, timeout: timeout,
			stdin: pipes[0], stdout: pipes[3], stderr: pipes[5],
		})
		switch {
		case err != nil:
			ended = err
		case r.Verdict != "":
			ended = &fault{Class: verdictClass(r.Verdict), Reason: "planning was stopped: " + w.verdictReason(r.Verdict, timeout)}
		case r.Code != 0:
			ended = &fault{Class: classOther, Reason: fmt.Sprintf("the planner ended with code %d", r.Code)}
		}
		pipes[0].Close()
		pipes[3].Close()
		pipes[5].Close()
	})

	var writing sync.Mutex
	send := func(line []byte) {
		writing.Lock()
		defer writing.Unlock()
		_, _ = pipes[1].Write(append(line, '\n')) // a planner that is gone is noticed where it is read
	}
	send(input)
	in := bufio.NewReaderSize(pipes[2], 64<<10)
	for {
		line, err := readLine(in, maxMessage)
		var r request
		if err == nil {
			err = json.Unmarshal(line, &r)
		}
		if err != nil {
			cancel()
			wg.Wait()
			if context.Cause(ctx) != nil && !errors.Is(context.Cause(ctx), context.Canceled) {
				return context.Cause(ctx)
			}
			if f, ok := errors.AsType[*fault](ended); ok {
				f.Evidence = said.lines(40)
				return f
			}
			if ended == nil {
				ended = err
			}
			return fmt.Errorf("the planner: %w", ended)
		}
		if r.Result != nil {
			var failed struct{ Error *fault }
			if err := json.Unmarshal(r.Result, &failed); err != nil {
				return fmt.Errorf("the planner's result: %w", err)
			}
			if failed.Error != nil {
				return failed.Error
			}
			if err := json.Unmarshal(r.Result, result); err != nil {
				return fmt.Errorf("the planner's result: %w", err)
			}
			return nil
		}
		wg.Go(func() {
			line, _ := json.Marshal(s.serve(ctx, r))
			send(line)
		})
	}
}

// serve runs one command for the planner.
func (s *scene) serve(ctx context.Context, r request) reply {
	answer := reply{ID: r.ID, Code: -1}
	b, err := s.box(r.Box)
	var out, in *os.File
	if err == nil {
		out, in, err = os.Pipe()
	}
	if err != nil {
		answer.Output = err.Error()
		return answer
	}
	var said tail
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = io.Copy(&said, out) })
	done, err := b.run(ctx, command{
		argv: r.Argv, env: r.Env, timeout: time.Duration(r.TimeoutMS) * time.Millisecond, stdout: in, stderr: in,
	})
	in.Close()
	wg.Wait()
	out.Close()
	answer.Code, answer.Output = done.Code, strings.Join(said.lines(200), "\n")
	if done.Verdict != "" {
		answer.Verdict = s.worker.verdictReason(done.Verdict, time.Duration(r.TimeoutMS)*time.Millisecond)
	}
	if err == nil && done.Code == 0 && r.File != "" {
		answer.Result, err = b.read(r.File)
	}
	if err != nil {
		answer.Code = -1
		answer.Output += "\n" + err.Error()
	}
	return answer
}

func (b *box) read(name string) (string, error) {
	f, _, err := b.open(name, maxResult)
	if err != nil {
		return "", err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxResult))
	return string(data), err
}

// readLine reads one line of at most limit bytes.
func readLine(r *bufio.Reader, limit int) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		if !errors.Is(err, bufio.ErrBufferFull) {
			return line, err
		}
		if len(line) > limit {
			return nil, fmt.Errorf("a message over %d bytes", limit)
		}
	}
}

// tail keeps the end of what is written to it.
type tail struct{ data []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.data = append(t.data, p...)
	if len(t.data) > 2*maxOutput {
		t.data = append(t.data[:0], t.data[len(t.data)-maxOutput:]...)
	}
	return len(p), nil
}

// lines returns the last lines that are not empty.
func (t *tail) lines(last int) []string {
	var found []string
	for line := range strings.Lines(strings.ToValidUTF8(string(t.data), "\uFFFD")) {
		if line = strings.TrimRight(line, " \t\r\n"); line != "" {
			found = append(found, line[:min(len(line), 2000)])
		}
	}
	return found[max(0, len(found)-last):]
}
