package events

// HintMatch is a hint that the log of a failed attempt matched.
type HintMatch struct {
	Hint    string   `json:"hint"`
	Line    int      `json:"line"` // from 1; 0: a line of the evidence that is not in the log
	Text    string   `json:"text"`
	Recipes []Recipe `json:"recipes,omitempty"` // what it brings to the next attempt, beyond what was in effect
}

// BuildHinted is the verdict on a failed attempt: what its log means, and whether the build is tried again. One follows every BuildFailed,
// unless another attempt has begun meanwhile that succeeded or failed.
type BuildHinted struct {
	build
	Attempt int         `json:"attempt"`
	Hints   []HintMatch `json:"hints,omitempty"`
	Retry   bool        `json:"retry,omitempty"`  // it is queued again: because of the hints, or by somebody who was quicker
	Reason  string      `json:"reason,omitempty"` // why it is not
}

func (BuildHinted) Name() string { return "build.hinted.v1" }

func init() {
	register[BuildHinted]()
}
