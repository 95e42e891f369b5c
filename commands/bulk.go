package commands

import (
	"fmt"

	"github.com/google/uuid"

	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/fault"
)

// MostBulk is how many builds one bulk action takes.
const MostBulk = 10_000

// The actions of a bulk.
const (
	BulkRetry    = "retry"
	BulkCancel   = "cancel"
	BulkPriority = "priority"
)

// Bulk is the state of a bulk action.
type Bulk struct {
	Action  string `json:"action"`
	Total   int    `json:"total"`
	Applied int    `json:"applied"`
	Refused int    `json:"refused"`
}

// Fold applies an event.
func (b Bulk) Fold(e events.BulkEvent) Bulk {
	switch e := e.(type) {
	case events.BulkRequested:
		b.Action, b.Total = e.Action, len(e.Builds)
	case events.BulkProgressed:
		b.Applied, b.Refused = b.Applied+e.Applied, b.Refused+e.Refused
	}
	return b
}

// RequestBulk asks for an action on each of some builds; a policy sends a command for each.
type RequestBulk struct {
	Bulk     uuid.UUID        `json:"bulk"`
	Action   string           `json:"action"`
	Priority *int             `json:"priority,omitempty"`
	Recipes  []events.Recipe  `json:"recipes,omitempty"`
	Reason   string           `json:"reason,omitempty"`
	Builds   []events.BuildID `json:"builds"`
}

// Decide takes it once.
func (c RequestBulk) Decide(b Bulk) ([]events.BulkEvent, error) {
	if b.Action != "" {
		return conflict[events.BulkEvent]("there is a bulk action of this id already")
	}
	return one[events.BulkEvent](events.BulkRequested{
		Action: c.Action, Priority: c.Priority, Recipes: c.Recipes, Reason: c.Reason, Builds: c.Builds,
	})
}

// ProgressBulk says what became of the next builds of a bulk action; its policy sends it.
type ProgressBulk struct {
	Bulk    uuid.UUID `json:"bulk"`
	Applied int       `json:"applied"`
	Refused int       `json:"refused"`
}

// Decide notes it.
func (c ProgressBulk) Decide(b Bulk) ([]events.BulkEvent, error) {
	if b.Action == "" {
		return nil, fault.New(fault.NotFound, "there is no such bulk action")
	}
	if b.Applied+b.Refused+c.Applied+c.Refused > b.Total {
		return conflict[events.BulkEvent]("the bulk action has only %d builds", b.Total)
	}
	return one[events.BulkEvent](events.BulkProgressed{Applied: c.Applied, Refused: c.Refused})
}

func (RequestBulk) Name() string  { return "bulk.request" }
func (ProgressBulk) Name() string { return "bulk.progress" }

func (c RequestBulk) Stream() string  { return events.BulkStream(c.Bulk) }
func (c ProgressBulk) Stream() string { return events.BulkStream(c.Bulk) }

// Validate checks the shape.
func (c RequestBulk) Validate() error {
	var k fault.Checks
	k.Check(c.Action == BulkRetry || c.Action == BulkCancel || c.Action == BulkPriority, "/action", "is not one of retry, cancel, priority")
	k.Check(c.Action != BulkPriority || c.Priority != nil, "/priority", "is missing")
	k.Check(c.Action != BulkCancel || c.Priority == nil, "/priority", "goes with retry and priority only")
	k.Check(c.Action == BulkRetry || len(c.Recipes) == 0, "/recipes", "goes with retry only")
	if c.Priority != nil {
		checkPriority(&k, *c.Priority)
	}
	checkRecipes(&k, c.Recipes)
	checkReason(&k, c.Reason)
	k.Check(len(c.Builds) <= MostBulk, "/builds", "are more than %d", MostBulk)
	for i, b := range c.Builds {
		checkBuild(&k, fmt.Sprintf("/builds/%d", i), b)
	}
	return k.Err()
}

// Validate checks the shape.
func (c ProgressBulk) Validate() error {
	var k fault.Checks
	k.Check(c.Applied >= 0 && c.Applied <= MostBulk, "/applied", "is not between 0 and %d", MostBulk)
	k.Check(c.Refused >= 0 && c.Refused <= MostBulk, "/refused", "is not between 0 and %d", MostBulk)
	return k.Err()
}

func init() {
	register[RequestBulk]()
	register[ProgressBulk]()
}
