package events

import (
	"time"

	"github.com/google/uuid"
)

// TriggerStream is the stream of one wake-up of workers.
func TriggerStream(id uuid.UUID) string { return "trigger/" + id.String() }

// ParseTrigger reads the name of a wake-up's stream.
func ParseTrigger(stream string) (uuid.UUID, bool) { return parseID(stream, "trigger/") }

// TriggerEvent is a fact of a wake-up.
//
//sumtype:decl
type TriggerEvent interface {
	Event
	isTrigger()
}

type trigger struct{}

func (trigger) isTrigger() {}

// TriggerRequested says that workers are to look for jobs now.
type TriggerRequested struct {
	trigger
	Local bool `json:"local,omitempty"` // without a webhook: the workers that wait here
}

// TriggerSucceeded says that they were told.
type TriggerSucceeded struct {
	trigger
	Attempt    int   `json:"attempt"`
	Status     int   `json:"status,omitempty"` // of the webhook's answer
	DurationMS int64 `json:"duration_ms,omitempty"`
	Woken      int   `json:"woken,omitempty"` // workers that were waiting here
}

// TriggerFailed says that an attempt to tell them failed.
type TriggerFailed struct {
	trigger
	Attempt    int       `json:"attempt"`
	Status     int       `json:"status,omitempty"` // of the webhook's answer; 0: there was none
	Reason     string    `json:"reason"`
	DurationMS int64     `json:"duration_ms"`
	RetryAt    time.Time `json:"retry_at,omitzero"` // zero: it was the last
}

func (TriggerRequested) Name() string { return "trigger.requested.v1" }
func (TriggerSucceeded) Name() string { return "trigger.succeeded.v1" }
func (TriggerFailed) Name() string    { return "trigger.failed.v1" }

func init() {
	register[TriggerRequested]()
	register[TriggerSucceeded]()
	register[TriggerFailed]()
}
