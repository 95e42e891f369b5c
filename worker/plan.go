package worker

import (
	"context"
	"errors"
	"time"

	"github.com/wheelrefinery/refinery/api"
)

// planTimeout bounds the making of one plan.
const planTimeout = 20 * time.Minute

// lastWords is how long a worker that stops tries to hand a job back.
const lastWords = 4 * time.Second

// plan makes a run's plan and reports it, or why there is none.
func (w *Worker) plan(ctx context.Context, job *api.Job) {
	log := w.Logger.With("run", job.RunID, "attempt", job.Attempt)
	log.Info("planning")
	began := time.Now()
	report := api.PlanReport{Worker: w.ID, RunID: job.RunID, Attempt: job.Attempt}
	err := w.makePlan(ctx, job, &report)
	f, isFault := errors.AsType[*fault](err)
	switch {
	case err == nil:
		report.PythonTag, report.PlatformTag = w.tags.PythonTag, w.tags.PlatformTag
		report.DurationMS = time.Since(began).Milliseconds()
	case context.Cause(ctx) == errCancelled || context.Cause(ctx) == errLost:
		log.Info("planning was given up", "reason", context.Cause(ctx))
		return
	case context.Cause(ctx) != nil:
		report = api.PlanReport{Worker: w.ID, RunID: job.RunID, Attempt: job.Attempt, Released: true, Reason: errStopping.Error()}
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), lastWords)
		defer cancel()
	case isFault && f.Class == unavailable:
		report.Released, report.Reason = true, oneLine(f.Reason)
	case isFault:
		report.Error = &api.PlanError{Class: f.Class, Reason: oneLine(f.Reason), Detail: evidence(f.Evidence)}
	default:
		report.Error = &api.PlanError{Class: classOther, Reason: oneLine("the worker could not plan: " + err.Error())}
	}
	switch err := w.report(ctx, report); {
	case isLost(err):
		log.Info("the plan comes too late: the lease was over")
	case err != nil:
		log.Error("the plan could not be reported", "error", err)
	case report.Error != nil:
		log.Info("no plan", "class", report.Error.Class, "reason", report.Error.Reason)
	case report.Released:
		log.Info("planning is handed back", "reason", report.Reason)
	default:
		log.Info("planned", "wheels", len(report.Nodes), "seconds", time.Since(began).Round(100*time.Millisecond).Seconds())
	}
}

func (w *Worker) makePlan(ctx context.Context, job *api.Job, report *api.PlanReport) error {
	s, err := w.newScene(debugLog{w.Logger})
	if err != nil {
		return err
	}
	defer s.close()
	return s.ask(ctx, planTimeout, map[string]any{
		"do": "plan", "requirements": job.Requirements, "constraints": job.ConstraintsText, "python": job.Python, "platform": job.Platform,
		"strategy": job.Strategy, "build_mode": job.BuildMode, "names": job.Names, "index_url": job.IndexURL,
	}, report)
}
