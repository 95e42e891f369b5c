// Package policies holds the reactions: a policy follows the log like a projection and sends commands.
//
// The id of a command that a policy sends is derived from the event that caused it, the policy and the command: reacting twice is the
// same command. Commands are on the bus before the checkpoint moves.
package policies

import (
	"context"
	"fmt"

	"github.com/google/uuid"

	"github.com/wheelrefinery/refinery/commands"
	"github.com/wheelrefinery/refinery/events"
)

// Message is a command with what travels with it.
type Message struct {
	Meta    commands.Meta
	Command commands.Command
}

// Send puts commands on the bus, in order, durably.
type Send func(ctx context.Context, messages []Message) error

var namespace = uuid.MustParse("8f2cf1f3-4a5a-4c8e-9d43-6f0f5a0a1c56")

// reaction makes the message of a command that policy, such as policy:runs, sends because of cause.
func reaction(policy string, cause events.Recorded, c commands.Command) Message {
	return Message{commands.Meta{
		ID:          uuid.NewSHA1(namespace, fmt.Appendf(nil, "%s %d %s %s", policy, cause.Position, c.Name(), c.Stream())),
		Actor:       policy,
		Correlation: cause.Correlation,
		Causation:   cause.Position,
	}, c}
}
