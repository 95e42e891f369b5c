package commands

import (
	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/fault"
)

// Queue is the state of the queue as a whole.
type Queue struct {
	Paused bool `json:"paused"`

	cleared       int64 // position of the last queue.cleared
	clearedLeased int64 // and of the last that took leased builds too
}

// Fold applies an event.
func (q Queue) Fold(e events.QueueEvent) Queue {
	switch e.(type) {
	case events.QueuePaused:
		q.Paused = true
	case events.QueueResumed:
		q.Paused = false
	case events.QueueCleared:
	}
	return q
}

// FoldAt applies an event and notes where the queue was cleared.
func (q Queue) FoldAt(e events.QueueEvent, position int64) Queue {
	if e, ok := e.(events.QueueCleared); ok {
		if q.cleared = position; e.IncludeLeased {
			q.clearedLeased = position
		}
	}
	return q.Fold(e)
}

// ClearQueue empties the queue on every transport: what is queued when it is decided is out, and a policy cancels those builds.
type ClearQueue struct {
	IncludeLeased bool   `json:"include_leased,omitempty"`
	Reason        string `json:"reason,omitempty"`
}

// Decide clears always; an empty queue is cleared of nothing.
func (c ClearQueue) Decide(Queue) ([]events.QueueEvent, error) {
	return one[events.QueueEvent](events.QueueCleared{IncludeLeased: c.IncludeLeased, Reason: c.Reason})
}

// PauseQueue stops leases.
type PauseQueue struct {
	Reason string `json:"reason,omitempty"`
}

// Decide pauses once.
func (c PauseQueue) Decide(q Queue) ([]events.QueueEvent, error) {
	if q.Paused {
		return none[events.QueueEvent]()
	}
	return one[events.QueueEvent](events.QueuePaused{Reason: c.Reason})
}

// ResumeQueue lets leases go on.
type ResumeQueue struct{}

// Decide resumes once.
func (c ResumeQueue) Decide(q Queue) ([]events.QueueEvent, error) {
	if !q.Paused {
		return none[events.QueueEvent]()
	}
	return one[events.QueueEvent](events.QueueResumed{})
}

func (ClearQueue) Name() string  { return "queue.clear" }
func (PauseQueue) Name() string  { return "queue.pause" }
func (ResumeQueue) Name() string { return "queue.resume" }

func (ClearQueue) Stream() string  { return events.QueueStream }
func (PauseQueue) Stream() string  { return events.QueueStream }
func (ResumeQueue) Stream() string { return events.QueueStream }

// Validate checks the shape.
func (c ClearQueue) Validate() error {
	var k fault.Checks
	checkReason(&k, c.Reason)
	return k.Err()
}

// Validate checks the shape.
func (c PauseQueue) Validate() error {
	var k fault.Checks
	checkReason(&k, c.Reason)
	return k.Err()
}

// Validate finds nothing to check.
func (ResumeQueue) Validate() error { return nil }

func init() {
	register[ClearQueue]()
	register[PauseQueue]()
	register[ResumeQueue]()
}
