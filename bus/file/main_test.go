package file

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/wheelrefinery/refinery/bus/bustest"
)

func TestMain(m *testing.M) {
	bustest.Main(openAs)
	if role := os.Getenv("BUS_TEST_CHILD"); role != "" {
		if err := children[role](os.Getenv("BUS_TEST_DIR")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// child runs this test binary as another process that plays a role on dir.
func child(t *testing.T, role, dir string, env ...string) (*exec.Cmd, io.Reader) {
	t.Helper()
	return bustest.Child(t, append(env, "BUS_TEST_CHILD="+role, "BUS_TEST_DIR="+dir)...)
}

// open opens a file bus whose log is a failure of the test, unless the test takes it.
func open(t testing.TB, dir string, change ...func(*tuning)) *fileBus {
	t.Helper()
	return openLogging(t, dir, bustest.Quiet(t), change...)
}

func openLogging(t testing.TB, dir string, log *bustest.Log, change ...func(*tuning)) *fileBus {
	t.Helper()
	tn := defaultTuning()
	for _, c := range change {
		c(&tn)
	}
	b, err := openFile(dir, log.Logger(), tn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Errorf("close bus: %v", err)
		}
	})
	return b
}

// segmentsOf lists the files of a topic's segments, in order.
func segmentsOf(t testing.TB, dir, topic string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, topic, "segments", "*.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func writeFile(t testing.TB, name, content string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}
