package testserver

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wheelrefinery/refinery/internal/pgtest"
)

const kafkaVersion = "4.1.0"

// pom names what a broker consists of. Without slf4j-simple it would keep to itself why it does not start.
const pom = `<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>
<groupId>refinery</groupId><artifactId>test-kafka</artifactId><version>1</version>
<dependencies>
<dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>` + kafkaVersion + `</version></dependency>
<dependency><groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>1.7.36</version></dependency>
</dependencies></project>`

var kafka struct {
	sync.Mutex
	brokers string
	err     error
}

// Kafka returns the address of the broker that the tests of this binary share, or KAFKA_BROKERS. Topics and groups are the tests' own:
// they choose names that nobody else has.
func Kafka(t testing.TB) string {
	t.Helper()
	kafka.Lock()
	defer kafka.Unlock()
	if kafka.brokers == "" && kafka.err == nil {
		if kafka.brokers = os.Getenv("KAFKA_BROKERS"); kafka.brokers == "" {
			jars := kafkaJars(t)
			var p *process
			if p, kafka.err = newKafka(jars, nil, nil); kafka.err == nil {
				pgtest.AtEnd(p.stop)
				kafka.err = p.start()
				kafka.brokers = p.addr
			}
		}
	}
	if kafka.err != nil {
		t.Fatal("testserver:", kafka.err)
	}
	return kafka.brokers
}

// NewKafka starts a broker of the test's own. For each address in told it has a further listener, Server.Behind, whose clients it sends
// there: to a proxy, since a broker tells clients its addresses.
func NewKafka(t testing.TB, told ...string) *Server {
	t.Helper()
	behind, err := freeAddrs(len(told))
	if err != nil {
		t.Fatal("testserver:", err)
	}
	p, err := newKafka(kafkaJars(t), told, behind)
	own(t, p, err)
	return &Server{p, behind}
}

// freeAddrs returns addresses at which nobody listens.
func freeAddrs(n int) (addrs []string, err error) {
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, fmt.Errorf("test server: %w", err)
		}
		defer l.Close() // after all have been chosen, so that they differ
		addrs = append(addrs, l.Addr().String())
	}
	return addrs, nil
}

// kafkaJars returns the folder with what a broker consists of. It is fetched once for all test binaries of a user.
func kafkaJars(t testing.TB) string {
	t.Helper()
	if _, err := exec.LookPath("java"); err != nil {
		pgtest.Missing(t, "Kafka", "apt-get install default-jre-headless maven, or set KAFKA_BROKERS")
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal("testserver:", err)
	}
	dir := filepath.Join(cache, "refinery-test", "kafka-"+kafkaVersion)
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal("testserver:", err)
	}
	lock, err := os.OpenFile(dir+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal("testserver:", err)
	}
	defer lock.Close() // which unlocks
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal("testserver: lock of Kafka's jars:", err)
	}
	if _, err := os.Stat(dir); err == nil {
		return dir
	}
	if _, err := exec.LookPath("mvn"); err != nil {
		pgtest.Missing(t, "Kafka", "apt-get install maven, or set KAFKA_BROKERS")
	}
	part := dir + ".part" // what is left of an attempt before is made anew
	if err := errors.Join(os.RemoveAll(part), os.Mkdir(part, 0o755), os.WriteFile(filepath.Join(part, "pom.xml"), []byte(pom), 0o600)); err != nil {
		t.Fatal("testserver:", err)
	}
	mvn := exec.CommandContext(t.Context(), "mvn", "-q", "-B", "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies",
		"-DincludeScope=runtime", "-DoutputDirectory="+part)
	mvn.Dir = part
	if out, err := mvn.CombinedOutput(); err != nil {
		pgtest.Missing(t, "Kafka", fmt.Sprintf("let Maven reach a repository, or set KAFKA_BROKERS (%v: %s)", err, firstLine(out)))
	}
	if err := os.Rename(part, dir); err != nil {
		t.Fatal("testserver:", err)
	}
	return dir
}

func firstLine(b []byte) string {
	line, _, _ := strings.Cut(strings.TrimSpace(string(b)), "\n")
	return line
}

// newKafka makes a broker that is its own controller. Clients of its listener behind[i] hear of it at told[i].
func newKafka(jars string, told, behind []string) (_ *process, err error) {
	p, err := newProcess("kafka")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(p.dir))
		}
	}()
	free, err := freeAddrs(1)
	if err != nil {
		return nil, err
	}
	controller := free[0]
	listeners, advertised, protocols := "PLAINTEXT://"+p.addr, "PLAINTEXT://"+p.addr, "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT"
	for i := range told {
		listeners += fmt.Sprintf(",PROXY%d://%s", i, behind[i])
		advertised += fmt.Sprintf(",PROXY%d://%s", i, told[i])
		protocols += fmt.Sprintf(",PROXY%d:PLAINTEXT", i)
	}
	settings := filepath.Join(p.dir, "server.properties")
	err = os.WriteFile(settings, []byte(strings.Join([]string{
		"process.roles=broker,controller",
		"node.id=1",
		"listeners=" + listeners + ",CONTROLLER://" + controller,
		"advertised.listeners=" + advertised,
		"listener.security.protocol.map=" + protocols,
		"inter.broker.listener.name=PLAINTEXT",
		"controller.listener.names=CONTROLLER",
		"controller.quorum.voters=1@" + controller,
		"log.dirs=" + filepath.Join(p.dir, "data"),
		"log.index.size.max.bytes=65536", // a file for each partition, which is as large from the start
		"auto.create.topics.enable=false",
		"offsets.topic.replication.factor=1",
		"offsets.topic.num.partitions=2",
		"transaction.state.log.replication.factor=1",
		"transaction.state.log.min.isr=1",
		"share.coordinator.state.topic.replication.factor=1",
		"share.coordinator.state.topic.min.isr=1",
		"group.initial.rebalance.delay.ms=0",
		"",
	}, "\n")), 0o600)
	if err != nil {
		return nil, fmt.Errorf("test server: %w", err)
	}
	java := func(args ...string) *exec.Cmd {
		cmd := exec.Command("java", append([]string{
			"-Xmx256m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
			"-cp", filepath.Join(jars, "*"),
		}, args...)...)
		cmd.Dir = p.dir
		return cmd
	}
	if out, err := java("kafka.tools.StorageTool", "format", "-t", "AAAAAAAAAAAAAAAAAAAAAA", "-c", settings).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("format Kafka's storage: %w: %s", err, out)
	}
	p.command = func() *exec.Cmd { return java("kafka.Kafka", settings) }
	p.ready = func() error {
		c, err := net.DialTimeout("tcp", p.addr, time.Second)
		if err != nil {
			return err
		}
		return c.Close()
	}
	return p, nil
}
