package commands

import (
	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/fault"
)

// RetryBuild asks again for a wheel that ended without one.
type RetryBuild struct {
	Build    events.BuildID  `json:"build"`
	Recipes  []events.Recipe `json:"recipes,omitempty"`  // instead of those that it had
	Priority *int            `json:"priority,omitempty"` // instead of the one that it had
}

// Decide queues what failed, was cancelled or skipped, from the source that it had.
func (c RetryBuild) Decide(b Build) ([]events.BuildEvent, error) {
	switch b.Status {
	case "":
		return nil, fault.New(fault.NotFound, "there is no such build")
	case "failed", "cancelled", "skipped":
	default:
		return conflict[events.BuildEvent]("the build is %s: only what failed, was cancelled or was skipped can be retried", b.Status)
	}
	q := events.BuildQueued{
		Sdist: b.sdist, Constraints: b.constraints, Recipes: b.recipes, Priority: b.Priority, Retry: b.Attempt > 0,
	}
	if len(c.Recipes) > 0 {
		q.Recipes = c.Recipes
	}
	if c.Priority != nil {
		q.Priority = *c.Priority
	}
	return one[events.BuildEvent](q)
}

// ChangePriority moves a build in the queue.
type ChangePriority struct {
	Build    events.BuildID `json:"build"`
	Priority int            `json:"priority"`
}

// Decide moves what waits.
func (c ChangePriority) Decide(b Build) ([]events.BuildEvent, error) {
	switch {
	case b.Status == "":
		return nil, fault.New(fault.NotFound, "there is no such build")
	case b.leased():
		return conflict[events.BuildEvent]("a worker has the build already: its priority matters no more")
	case !b.waiting():
		return conflict[events.BuildEvent]("the build is %s: only one that waits in the queue has a priority to change", b.Status)
	case b.Priority == c.Priority:
		return none[events.BuildEvent]()
	}
	return one[events.BuildEvent](events.BuildPriorityChanged{Priority: c.Priority})
}

func (RetryBuild) Name() string     { return "build.retry" }
func (ChangePriority) Name() string { return "build.prioritise" }

func (c RetryBuild) Stream() string     { return c.Build.Stream() }
func (c ChangePriority) Stream() string { return c.Build.Stream() }

// Validate checks the shape.
func (c RetryBuild) Validate() error {
	var k fault.Checks
	checkBuild(&k, "/build", c.Build)
	checkRecipes(&k, c.Recipes)
	if c.Priority != nil {
		checkPriority(&k, *c.Priority)
	}
	return k.Err()
}

// Validate checks the shape.
func (c ChangePriority) Validate() error {
	var k fault.Checks
	checkBuild(&k, "/build", c.Build)
	checkPriority(&k, c.Priority)
	return k.Err()
}

func init() {
	register[RetryBuild]()
	register[ChangePriority]()
}
