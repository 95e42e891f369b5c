package events

// QueueStream is the one stream of the queue.
const QueueStream = "queue/main"

// QueueEvent is a fact of the queue as a whole.
//
//sumtype:decl
type QueueEvent interface {
	Event
	isQueue()
}

type queue struct{}

func (queue) isQueue() {}

// QueueCleared says that everything queued at this position is out of the queue.
type QueueCleared struct {
	queue
	IncludeLeased bool   `json:"include_leased,omitempty"`
	Reason        string `json:"reason,omitempty"`
}

// QueuePaused says that no leases are given.
type QueuePaused struct {
	queue
	Reason string `json:"reason,omitempty"`
}

// QueueResumed says that leases are given again.
type QueueResumed struct{ queue }

func (QueueCleared) Name() string { return "queue.cleared.v1" }
func (QueuePaused) Name() string  { return "queue.paused.v1" }
func (QueueResumed) Name() string { return "queue.resumed.v1" }

func init() {
	register[QueueCleared]()
	register[QueuePaused]()
	register[QueueResumed]()
}
