package events

import "strings"

// ProjectionStream is the stream of what operators do to a read model.
func ProjectionStream(name string) string { return "projection/" + name }

// ParseProjection reads the name of a read model's stream.
func ParseProjection(stream string) (name string, ok bool) {
	return strings.CutPrefix(stream, "projection/")
}

// ProjectionEvent is what an operator wants of a read model.
//
//sumtype:decl
type ProjectionEvent interface {
	Event
	isProjection()
}

type projection struct{}

func (projection) isProjection() {}

// RebuildRequested says that the read model is to be made again from the whole log.
type RebuildRequested struct{ projection }

// DeadLetterRetried says that the events that a stream is parked with are to be applied again.
type DeadLetterRetried struct {
	projection
	Position int64 `json:"position"` // of one of them
}

// DeadLetterSkipped says that the event that a stream is parked at is to be left out.
type DeadLetterSkipped struct {
	projection
	Position int64 `json:"position"`
}

func (RebuildRequested) Name() string  { return "projection.rebuild_requested.v1" }
func (DeadLetterRetried) Name() string { return "projection.dead_letter_retried.v1" }
func (DeadLetterSkipped) Name() string { return "projection.dead_letter_skipped.v1" }

func init() {
	register[RebuildRequested]()
	register[DeadLetterRetried]()
	register[DeadLetterSkipped]()
}
