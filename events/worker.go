package events

// WorkerStream is the stream of a worker.
func WorkerStream(id string) string { return "worker/" + id }

// WorkerEvent is a fact of a worker's stream.
//
//sumtype:decl
type WorkerEvent interface {
	Event
	isWorker()
}

type worker struct{}

func (worker) isWorker() {}

// WorkerRegistered says what a worker can do. It is recorded when that changes.
type WorkerRegistered struct {
	worker
	PythonTag   string `json:"python_tag"`
	PlatformTag string `json:"platform_tag"`
	Slots       int    `json:"slots"`
	Version     string `json:"version,omitempty"` // of the refinery program
	Host        string `json:"host,omitempty"`
}

func (WorkerRegistered) Name() string { return "worker.registered.v1" }

func init() {
	register[WorkerRegistered]()
}
