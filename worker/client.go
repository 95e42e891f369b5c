package worker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"time"

	"github.com/sethvargo/go-retry"

	"github.com/wheelrefinery/refinery/api"
)

// refused is an answer of the control plane that trying again would not change.
type refused struct {
	status int
	detail string
}

func (r *refused) Error() string {
	return fmt.Sprintf("the control plane answered %d: %s", r.status, r.detail)
}

// isLost says that the attempt is not ours any more.
func isLost(err error) bool {
	r, ok := errors.AsType[*refused](err)
	return ok && r.status == http.StatusConflict
}

// patience is how long a call is repeated while the control plane is away: a result should outlive its restart.
const patience = 15 * time.Minute

// repeat makes a call until it is answered with something other than 5xx or 429.
func repeat(ctx context.Context, call func(context.Context) (int, *api.Problem, error)) error {
	wait := retry.WithMaxDuration(patience, retry.WithCappedDuration(5*time.Second, retry.WithJitterPercent(20,
		retry.NewExponential(200*time.Millisecond))))
	return retry.Do(ctx, wait, func(ctx context.Context) error {
		err := verdict(call(ctx))
		if r, ok := errors.AsType[*refused](err); ok && r.status < 500 && r.status != http.StatusTooManyRequests {
			return err
		}
		if err != nil {
			return retry.RetryableError(err)
		}
		return nil
	})
}

func verdict(status int, problem *api.Problem, err error) error {
	switch {
	case err != nil:
		return err
	case status < 300:
		return nil
	case problem == nil:
		return &refused{status, http.StatusText(status)}
	}
	return &refused{status, or(problem.Detail, problem.Title)}
}

const leaseWait = 20 // seconds

// lease asks for a job, once. nil: nothing came.
func (w *Worker) lease(ctx context.Context) (*api.Job, error) {
	r, err := w.client.LeaseWithResponse(ctx, api.LeaseRequest{
		Worker: w.ID, Slots: w.Slots, PythonTag: w.tags.PythonTag, PlatformTag: w.tags.PlatformTag, PythonVersion: w.tags.PythonVersion,
		Version: w.version, Host: w.host, WaitSeconds: leaseWait,
		Kinds: []api.JobKind{api.JobKindPlan, api.JobKindBuild, api.JobKindSmoke},
	})
	if err != nil {
		return nil, err
	}
	if err := verdict(r.StatusCode(), r.ApplicationProblemJSONDefault, nil); err != nil {
		return nil, err
	}
	if r.StatusCode() == http.StatusOK && r.JSON200 == nil {
		return nil, errors.New("the answer is no job")
	}
	return r.JSON200, nil
}

// heartbeat is sent once: the next one follows anyhow.
func (w *Worker) heartbeat(ctx context.Context, jobs []api.JobRef) (*api.HeartbeatAnswer, error) {
	ctx, cancel := context.WithTimeout(ctx, 8*time.Second)
	defer cancel()
	r, err := w.client.HeartbeatWithResponse(ctx, api.HeartbeatRequest{Worker: w.ID, Jobs: jobs})
	if err != nil {
		return nil, err
	}
	if err := verdict(r.StatusCode(), r.ApplicationProblemJSONDefault, nil); err != nil {
		return nil, err
	}
	if r.JSON200 == nil {
		return nil, errors.New("the answer cannot be read")
	}
	return r.JSON200, nil
}

func (w *Worker) result(ctx context.Context, report api.ResultReport) error {
	key := fmt.Sprintf("%s/%s/%s/%s/%d/%s/%s", report.Build.Name, report.Build.Version, report.Build.PythonTag, report.Build.PlatformTag,
		report.Attempt, report.Status, w.ID)
	params := &api.RecordResultParams{IdempotencyKey: idempotencyKey(key)}
	return repeat(ctx, func(ctx context.Context) (int, *api.Problem, error) {
		r, err := w.client.RecordResultWithResponse(ctx, params, report)
		if err != nil {
			return 0, nil, err
		}
		return r.StatusCode(), r.ApplicationProblemJSONDefault, nil
	})
}

func (w *Worker) report(ctx context.Context, report api.PlanReport) error {
	params := &api.RecordPlanParams{IdempotencyKey: idempotencyKey(fmt.Sprintf("plan/%s/%d/%t", report.RunID, report.Attempt, report.Released))}
	return repeat(ctx, func(ctx context.Context) (int, *api.Problem, error) {
		r, err := w.client.RecordPlanWithResponse(ctx, params, report)
		if err != nil {
			return 0, nil, err
		}
		return r.StatusCode(), r.ApplicationProblemJSONDefault, nil
	})
}

func (w *Worker) postLog(ctx context.Context, job *api.Job, chunk int, text string) error {
	params := &api.AppendLogParams{PythonTag: job.Build.PythonTag, PlatformTag: job.Build.PlatformTag, Attempt: job.Attempt}
	return repeat(ctx, func(ctx context.Context) (int, *api.Problem, error) {
		r, err := w.client.AppendLogWithResponse(ctx, job.Build.Name, job.Build.Version, params, api.LogChunk{Chunk: chunk, Text: text})
		if err != nil {
			return 0, nil, err
		}
		return r.StatusCode(), r.ApplicationProblemJSONDefault, nil
	})
}

var hash = regexp.MustCompile(`[0-9a-f]{64}`)

// upload sends a wheel. It returns what the index has under that name then: where another build made it first, that one.
func (w *Worker) upload(ctx context.Context, job *api.Job, file *os.File, wheel api.WheelRef) (api.WheelRef, error) {
	b := job.Build
	params := &api.PutArtifactParams{
		XContentSHA256: wheel.SHA256, XBuild: b.Name + "/" + b.Version + "/" + b.PythonTag + "/" + b.PlatformTag, XAttempt: job.Attempt,
	}
	var stored api.WheelRef
	err := repeat(ctx, func(ctx context.Context) (int, *api.Problem, error) {
		r, err := w.client.PutArtifactWithBodyWithResponse(ctx, wheel.Filename, params, "application/octet-stream",
			io.NewSectionReader(file, 0, wheel.Size), func(_ context.Context, r *http.Request) error {
				r.ContentLength = wheel.Size
				return nil
			})
		if err != nil {
			return 0, nil, err
		}
		if a := r.JSON201; a != nil {
			stored = api.WheelRef{Filename: a.Filename, SHA256: a.SHA256, Size: a.Size}
		}
		if r.StatusCode() == http.StatusAccepted { // not in the index yet: sending it again waits again
			return 0, nil, errors.New("the control plane is slow to take the wheel")
		}
		return r.StatusCode(), r.ApplicationProblemJSONDefault, nil
	})
	if r, ok := errors.AsType[*refused](err); ok && r.status == http.StatusConflict {
		if sum := hash.FindString(r.detail); sum != "" && sum != wheel.SHA256 {
			size, err := w.sizeOf(ctx, wheel.Filename)
			if err != nil { // its size is of less use than the result
				w.Logger.Warn("the size of a wheel is not known", "wheel", wheel.Filename, "error", err)
			}
			return api.WheelRef{Filename: wheel.Filename, SHA256: sum, Size: size}, nil
		}
	}
	if err == nil && stored.SHA256 != wheel.SHA256 {
		err = fmt.Errorf("the index has SHA-256 %s for %s, and %s was sent", stored.SHA256, wheel.Filename, wheel.SHA256)
	}
	return stored, err
}

// sizeOf asks the index for the size of a wheel.
func (w *Worker) sizeOf(ctx context.Context, filename string) (size int64, err error) {
	err = repeat(ctx, func(ctx context.Context) (int, *api.Problem, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodHead, w.URL+"/artifacts/"+filename, nil)
		if err != nil {
			return 0, nil, err
		}
		if w.Token != "" {
			req.Header.Set("X-Worker-Token", w.Token)
		}
		r, err := w.transport.RoundTrip(req)
		if err != nil {
			return 0, nil, err
		}
		size = max(r.ContentLength, 0)
		return r.StatusCode, nil, r.Body.Close()
	})
	return size, err
}
