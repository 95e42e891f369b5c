package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/internal/fault"
)

// terminal is where a command writes: out is for results, err for progress and trouble.
type terminal struct{ out, err io.Writer }

func (t *terminal) interactive() bool {
	f, ok := t.err.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// request is what `build` and `up` may submit.
type request struct {
	Requirements string `name:"requirements" short:"r" placeholder:"FILE" type:"existingfile" help:"Requirements file to refine."`
	Constraints  string `short:"c" placeholder:"FILE" type:"existingfile" help:"Constraints file."`
	Build        string `default:"missing" placeholder:"missing|all|bootstrap|NAMES" help:"What to build from source: what has no wheel (missing), everything that would be installed (all), what building needs as well (bootstrap), or the projects named, separated by commas."`
	Strategy     string `default:"pinned" enum:"pinned,upgrade" help:"pinned: keep the versions of the file; upgrade: take the newest."`
	ForPython    string `name:"for-python" placeholder:"X.Y" help:"Python to build for. Default: the worker's."`
	ForPlatform  string `name:"for-platform" placeholder:"TAG" help:"Platform to build for. Default: the worker's."`
}

func (q request) submission() (api.RunSubmission, error) {
	s := api.RunSubmission{
		Build: api.BuildMode(q.Build), Strategy: api.Strategy(q.Strategy), Python: q.ForPython, Platform: q.ForPlatform,
	}
	switch q.Build {
	case "missing", "all", "bootstrap":
	default:
		s.Build = "names"
		for name := range strings.SplitSeq(q.Build, ",") {
			s.Names = append(s.Names, strings.TrimSpace(name))
		}
	}
	text, err := os.ReadFile(q.Requirements)
	if err != nil {
		return s, fmt.Errorf("read the requirements: %w", err)
	}
	s.Requirements = string(text)
	if q.Constraints != "" {
		if text, err = os.ReadFile(q.Constraints); err != nil {
			return s, fmt.Errorf("read the constraints: %w", err)
		}
		s.Constraints = string(text)
	}
	return s, nil
}

// client talks to a control plane.
func client(url, token string) (*api.ClientWithResponses, error) {
	return api.NewClientWithResponses(url, api.WithRequestEditorFn(func(_ context.Context, r *http.Request) error {
		if token != "" {
			r.Header.Set("X-Worker-Token", token)
		}
		return nil
	}))
}

type buildCmd struct {
	request
	URL   string `env:"REFINERY_URL" default:"http://127.0.0.1:8080" help:"The control plane."`
	Token string `name:"worker-token" env:"WORKER_TOKEN" help:"Token for writes."`
}

// Run submits and follows.
func (b *buildCmd) Run(ctx context.Context, t *terminal) error {
	if b.Requirements == "" {
		return fault.New(fault.Invalid, "no requirements: give a file with -r requirements.txt")
	}
	c, err := client(b.URL, b.Token)
	if err != nil {
		return err
	}
	f := &follower{client: c, url: strings.TrimSuffix(b.URL, "/"), terminal: t}
	return f.refine(ctx, b.request)
}

// follower submits a run and shows how it goes.
type follower struct {
	client *api.ClientWithResponses
	url    string
	ours   bool // the control plane is in this process and stops with it
	*terminal
}

const (
	pollEvery = 250 * time.Millisecond
	// patience is how long a control plane may be away while a run is followed: it may be starting again.
	patience = time.Minute
)

// refine submits q, unless a run that asks for the same is under way, and follows it to its end. It returns nil when every wheel is there.
func (f *follower) refine(ctx context.Context, q request) error {
	s, err := q.submission()
	if err != nil {
		return err
	}
	id, err := f.underWay(ctx, s)
	if err != nil {
		return f.explain(err)
	}
	if id != "" {
		fmt.Fprintf(f.err, "Going on with run %s, which asks for the same.\n", id)
	} else {
		answer, err := f.client.SubmitRunWithResponse(ctx, nil, s)
		if err != nil {
			return f.explain(err)
		}
		switch {
		case answer.JSON201 != nil:
			id = answer.JSON201.ID.String()
		case answer.JSON202 != nil:
			return fault.New(fault.Timeout, "the control plane took the run but does not handle it: look at %s/ready, then at %s/runs", f.url, f.url)
		default:
			return refused(answer.ApplicationProblemJSONDefault, answer.HTTPResponse)
		}
		fmt.Fprintf(f.err, "Run %s is submitted.\n", id)
	}
	return f.follow(ctx, id)
}

// underWay finds a run that has not ended and asks for the same.
func (f *follower) underWay(ctx context.Context, s api.RunSubmission) (string, error) {
	limit := 20
	list, err := f.client.ListRunsWithResponse(ctx, &api.ListRunsParams{Limit: &limit})
	if err != nil {
		return "", err
	}
	if list.JSON200 == nil {
		return "", refused(list.ApplicationProblemJSONDefault, list.HTTPResponse)
	}
	for _, r := range list.JSON200.Items {
		if r.FinishedAt != nil || r.Build != s.Build {
			continue
		}
		one, err := f.client.GetRunWithResponse(ctx, r.ID, nil)
		if err != nil {
			return "", err
		}
		o := one.JSON200
		if o != nil && o.FinishedAt == nil && o.Requirements == s.Requirements && o.Constraints == s.Constraints && o.Strategy == s.Strategy &&
			o.Python == s.Python && o.Platform == s.Platform && strings.Join(o.Names, ",") == strings.Join(s.Names, ",") {
			return r.ID.String(), nil
		}
	}
	return "", nil
}

// refused makes an error of an answer that is not the one wanted.
func refused(p *api.Problem, r *http.Response) error {
	if p == nil {
		return fault.New(fault.Internal, "the control plane answers %s", r.Status)
	}
	text := p.Title
	if p.Detail != "" {
		text += ": " + p.Detail
	}
	for _, e := range p.Errors {
		text += "\n  " + e.Pointer + " " + e.Detail
	}
	return errors.New(text)
}

func (f *follower) explain(err error) error {
	if errors.Is(err, context.Canceled) {
		return err
	}
	return fmt.Errorf("the control plane at %s does not answer (%w): start it with `refinery up`, or name another with --url", f.url, err)
}

func (f *follower) follow(ctx context.Context, id string) error {
	view := newView(f.terminal)
	seen := time.Now()
	for {
		run, items, err := f.look(ctx, id)
		switch {
		case ctx.Err() != nil:
			view.close()
			if f.ours {
				fmt.Fprintln(f.err, "The run is not over: the next start goes on with it.")
				return exit(exitInterrupted)
			}
			fmt.Fprintf(f.err, "The run goes on without us: see %s/runs/%s, stop it with a POST to %s/runs/%s/cancel.\n", f.url, id, f.url, id)
			return exit(exitInterrupted)
		case err != nil && time.Since(seen) > patience:
			view.close()
			return f.explain(err)
		case err == nil:
			seen = time.Now()
			view.show(run, items)
			if run.FinishedAt != nil {
				view.close()
				return f.report(run)
			}
		}
		select {
		case <-time.After(pollEvery):
		case <-ctx.Done():
		}
	}
}

func (f *follower) look(ctx context.Context, id string) (*api.Run, []api.HistoryEntry, error) {
	uid, err := parseID(id)
	if err != nil {
		return nil, nil, err
	}
	run, err := f.client.GetRunWithResponse(ctx, uid, nil)
	if err != nil {
		return nil, nil, err
	}
	if run.JSON200 == nil {
		return nil, nil, refused(run.ApplicationProblemJSONDefault, run.HTTPResponse)
	}
	limit := 500
	history, err := f.client.ListHistoryWithResponse(ctx, &api.ListHistoryParams{RunID: &uid, Limit: &limit})
	if err != nil {
		return nil, nil, err
	}
	if history.JSON200 == nil {
		return nil, nil, refused(history.ApplicationProblemJSONDefault, history.HTTPResponse)
	}
	return run.JSON200, history.JSON200.Items, nil
}

// report says how the run ended, and what to do.
func (f *follower) report(run *api.Run) error {
	n := run.Counts
	if run.State == "built" {
		fmt.Fprintf(f.out, "All %d wheels are there: %d built, %d reused.\n", run.Total, n["built"], n["reused"])
		fmt.Fprintf(f.out, "Install from the index with\n\n    pip install --index-url %s/simple/ …\n\n", f.url)
		return nil
	}
	if run.Total == 0 {
		fmt.Fprintf(f.out, "The run is %s: no plan was made. %s\n", run.State, run.Reason)
		for _, line := range run.Detail {
			fmt.Fprintln(f.out, "    "+printable(line))
		}
		return exit(exitFailed)
	}
	fmt.Fprintf(f.out, "The run is %s: %d built, %d reused, %d failed, %d skipped, %d cancelled of %d.\n",
		run.State, n["built"], n["reused"], n["failed"], n["skipped"], n["cancelled"], run.Total)
	if n["failed"] > 0 {
		fmt.Fprintf(f.out, "Read a log at %s/logs/NAME/VERSION?format=text\n", f.url)
	}
	return exit(exitFailed)
}

// view shows a run: a bar on a terminal, plain lines elsewhere.
type view struct {
	*terminal
	bar   *progressbar.ProgressBar
	state string
	told  map[int64]bool
}

func newView(t *terminal) *view { return &view{terminal: t, told: map[int64]bool{}} }

func (v *view) show(run *api.Run, items []api.HistoryEntry) {
	n := run.Counts
	done := n["built"] + n["reused"] + n["failed"] + n["skipped"] + n["cancelled"]
	if run.Total > 0 && v.bar == nil && v.interactive() {
		v.bar = progressbar.NewOptions(run.Total, progressbar.OptionSetWriter(v.err), progressbar.OptionSetWidth(30),
			progressbar.OptionShowCount(), progressbar.OptionSetElapsedTime(true), progressbar.OptionSetPredictTime(false),
			progressbar.OptionClearOnFinish())
	}
	if state := string(run.State); state != v.state {
		v.state = state
		switch {
		case state == "submitted":
			v.line("Waiting for a worker to plan it.")
		case state == "planning":
			v.line("Planning.")
		case run.Total > 0 && run.FinishedAt == nil:
			v.line("The plan has %d wheels.", run.Total)
		}
	}
	for i := len(items) - 1; i >= 0; i-- { // newest first
		h := items[i]
		if v.told[h.Position] {
			continue
		}
		v.told[h.Position] = true
		text := fmt.Sprintf("%-9s %s %s", h.Status, h.Name, h.Version)
		if h.DurationMS > 0 {
			text += fmt.Sprintf("  %.1f s", float64(h.DurationMS)/1000)
		}
		switch {
		case h.Wheel != "":
			text += "  " + h.Wheel
		case h.Reason != "":
			text += "  " + printable(h.Reason)
		}
		v.line("%s", text)
	}
	if v.bar != nil {
		v.bar.Describe(fmt.Sprintf("%d building, %d waiting", n["leased"]+n["building"], n["queued"]+n["retrying"]+n["planned"]))
		_ = v.bar.Set64(done) // fails only beyond the total, and then there is nothing to show
	}
}

func (v *view) line(format string, args ...any) {
	if v.bar != nil {
		_ = v.bar.Clear() // a line of its own, above the bar
	}
	fmt.Fprintf(v.err, format+"\n", args...)
}

func (v *view) close() {
	if v.bar != nil {
		_ = v.bar.Clear()
	}
}

// printable keeps what a build printed from steering the terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || (r >= 0x80 && r < 0xa0) {
			return -1
		}
		return r
	}, s)
}
