package commands

import (
	"regexp"

	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/fault"
)

// Projection is the state of what operators did to a read model.
type Projection struct {
	Rebuilds int `json:"rebuilds"`
	Retries  int `json:"retries"`
	Skips    int `json:"skips"`
}

// Fold applies an event.
func (p Projection) Fold(e events.ProjectionEvent) Projection {
	switch e.(type) {
	case events.RebuildRequested:
		p.Rebuilds++
	case events.DeadLetterRetried:
		p.Retries++
	case events.DeadLetterSkipped:
		p.Skips++
	}
	return p
}

// RebuildProjection makes a read model again.
type RebuildProjection struct {
	Projection string `json:"projection"`
}

// Decide asks for it always; whoever runs the read models knows whether one is under way.
func (c RebuildProjection) Decide(Projection) ([]events.ProjectionEvent, error) {
	return one[events.ProjectionEvent](events.RebuildRequested{})
}

// MendProjection applies again what a stream is parked with, or skips the event that it is parked at.
type MendProjection struct {
	Projection string `json:"projection"`
	Position   int64  `json:"position"`
	Skip       bool   `json:"skip,omitempty"`
}

// Decide asks for it always.
func (c MendProjection) Decide(Projection) ([]events.ProjectionEvent, error) {
	if c.Skip {
		return one[events.ProjectionEvent](events.DeadLetterSkipped{Position: c.Position})
	}
	return one[events.ProjectionEvent](events.DeadLetterRetried{Position: c.Position})
}

func (RebuildProjection) Name() string { return "projection.rebuild" }
func (MendProjection) Name() string    { return "projection.mend" }

func (c RebuildProjection) Stream() string { return events.ProjectionStream(c.Projection) }
func (c MendProjection) Stream() string    { return events.ProjectionStream(c.Projection) }

var projectionForm = regexp.MustCompile(`^[a-z][a-z_]*$`)

func checkProjection(k *fault.Checks, name string) {
	k.Check(form(name, projectionForm, 60), "/projection", "is not the name of a read model")
}

// Validate checks the shape.
func (c RebuildProjection) Validate() error {
	var k fault.Checks
	checkProjection(&k, c.Projection)
	return k.Err()
}

// Validate checks the shape.
func (c MendProjection) Validate() error {
	var k fault.Checks
	checkProjection(&k, c.Projection)
	k.Check(c.Position > 0, "/position", "is not a positive number")
	return k.Err()
}

func init() {
	register[RebuildProjection]()
	register[MendProjection]()
}
