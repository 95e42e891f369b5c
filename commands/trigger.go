package commands

import (
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/fault"
)

// Trigger is the state of a wake-up of workers.
type Trigger struct {
	State      string `json:"state"` // requested, retrying, succeeded, failed
	Attempts   int    `json:"attempts"`
	Status     int    `json:"status,omitempty"`
	Reason     string `json:"reason,omitempty"`
	DurationMS int64  `json:"duration_ms,omitempty"`
	Woken      int    `json:"woken,omitempty"`
}

// Fold applies an event.
func (t Trigger) Fold(e events.TriggerEvent) Trigger {
	switch e := e.(type) {
	case events.TriggerRequested:
		t.State = "requested"
	case events.TriggerSucceeded:
		t = Trigger{State: "succeeded", Attempts: e.Attempt, Status: e.Status, DurationMS: e.DurationMS, Woken: e.Woken}
	case events.TriggerFailed:
		t = Trigger{State: "retrying", Attempts: e.Attempt, Status: e.Status, Reason: e.Reason, DurationMS: e.DurationMS}
		if e.RetryAt.IsZero() {
			t.State = "failed"
		}
	}
	return t
}

// RequestTrigger asks that workers look for jobs now. Without a webhook those that wait here have been woken, and Woken says how many.
type RequestTrigger struct {
	Trigger uuid.UUID `json:"trigger"`
	Local   bool      `json:"local,omitempty"`
	Woken   int       `json:"woken,omitempty"`
}

// Decide takes it once.
func (c RequestTrigger) Decide(t Trigger) ([]events.TriggerEvent, error) {
	switch {
	case t.State != "":
		return conflict[events.TriggerEvent]("there is a wake-up of this id already")
	case c.Local:
		return []events.TriggerEvent{events.TriggerRequested{Local: true}, events.TriggerSucceeded{Attempt: 1, Woken: c.Woken}}, nil
	}
	return one[events.TriggerEvent](events.TriggerRequested{})
}

// RecordTrigger says how an attempt to call the webhook went; a policy sends it.
type RecordTrigger struct {
	Trigger    uuid.UUID `json:"trigger"`
	Attempt    int       `json:"attempt"`
	Status     int       `json:"status,omitempty"`
	Reason     string    `json:"reason,omitempty"` // why it failed
	DurationMS int64     `json:"duration_ms"`
	RetryAt    time.Time `json:"retry_at,omitzero"`
}

// RecordTriggerID is the id of the command that records an attempt, so that who asked can wait for it.
func RecordTriggerID(trigger uuid.UUID, attempt int) uuid.UUID {
	return uuid.NewSHA1(trigger, fmt.Appendf(nil, "attempt %d", attempt))
}

// Decide notes the next attempt of what has not ended.
func (c RecordTrigger) Decide(t Trigger) ([]events.TriggerEvent, error) {
	switch {
	case t.State == "":
		return nil, fault.New(fault.NotFound, "there is no such wake-up")
	case t.State != "requested" && t.State != "retrying" || c.Attempt != t.Attempts+1:
		return conflict[events.TriggerEvent]("attempt %d is not the next: the wake-up is %s after %d", c.Attempt, t.State, t.Attempts)
	case c.Reason == "":
		return one[events.TriggerEvent](events.TriggerSucceeded{Attempt: c.Attempt, Status: c.Status, DurationMS: c.DurationMS})
	}
	return one[events.TriggerEvent](events.TriggerFailed{
		Attempt: c.Attempt, Status: c.Status, Reason: c.Reason, DurationMS: c.DurationMS, RetryAt: c.RetryAt,
	})
}

func (RequestTrigger) Name() string { return "trigger.request" }
func (RecordTrigger) Name() string  { return "trigger.record" }

func (c RequestTrigger) Stream() string { return events.TriggerStream(c.Trigger) }
func (c RecordTrigger) Stream() string  { return events.TriggerStream(c.Trigger) }

// Validate checks the shape.
func (c RequestTrigger) Validate() error {
	var k fault.Checks
	k.Check(c.Woken >= 0, "/woken", "is negative")
	return k.Err()
}

// Validate checks the shape.
func (c RecordTrigger) Validate() error {
	var k fault.Checks
	k.Check(c.Attempt > 0, "/attempt", "is not a positive number")
	k.Check(c.Status >= 0 && c.Status < 1000, "/status", "is not an HTTP status")
	checkReason(&k, c.Reason)
	k.Check(c.DurationMS >= 0, "/duration_ms", "is negative")
	return k.Err()
}

func init() {
	register[RequestTrigger]()
	register[RecordTrigger]()
}
