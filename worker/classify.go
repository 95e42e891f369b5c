package worker

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/wheelrefinery/refinery/api"
)

// The classes of failures that a worker gives.
const (
	classDownload       api.Class = "download"
	classMissingHeader  api.Class = "missing-header"
	classMissingLibrary api.Class = "missing-library"
	classMissingTool    api.Class = "missing-tool"
	classCompiler       api.Class = "compiler"
	classBackend        api.Class = "backend"
	classTimeout        api.Class = "timeout"
	classOutOfMemory    api.Class = "out-of-memory"
	classOther          api.Class = "other"
)

// patterns tell from a line of a build's log what failed. An earlier row goes before a later one, whichever line they match; of the lines
// that match the same row, the last counts. $1 in the reason is the pattern's first group, $0 the line.
var patterns = []struct {
	re     *regexp.Regexp
	class  api.Class
	reason string
}{
	{regexp.MustCompile(`No space left on device`), classOther, "the worker's disk is full"},
	{regexp.MustCompile(`File size limit exceeded|\[Errno 27\] File too large`), classOther, "the build wrote more than its limit of disk space allows"},
	{regexp.MustCompile(`(?i)fork: (?:retry: )?Resource temporarily unavailable|BlockingIOError: \[Errno 11\]|can't start new thread|vfork: Resource`), classOther, "the build started more processes than its limit allows"},
	{regexp.MustCompile(`^MemoryError|std::bad_alloc|virtual memory exhausted|[Cc]annot allocate memory|out of memory|LLVM ERROR: out of memory|Killed signal terminated program`), classOutOfMemory, "the build ran out of memory: $0"},
	{regexp.MustCompile(`fatal error: (\S+\.(?:h|hh|hpp|hxx)): No such file or directory`), classMissingHeader, "the header $1 is missing"},
	{regexp.MustCompile(`fatal error: '(\S+)' file not found`), classMissingHeader, "the header $1 is missing"},
	{regexp.MustCompile(`(pg_config|mysql_config|krb5-config|curl-config|xml2-config|xslt-config|freetype-config|gdal-config|sdl2?-config|net-snmp-config|geos-config)\b.*(?:not found|not be found|No such file)`), classMissingTool, "$1 is missing"},
	{regexp.MustCompile(`(?i)can(?:'t|not) find (rust compiler)|(cargo), the Rust package manager, is not installed`), classMissingTool, "a Rust compiler is missing: $0"},
	{regexp.MustCompile(`(?:error: command|unable to execute) '?([\w.+-]*(?:gcc|g\+\+|cc|c\+\+|clang|gfortran|nvcc|swig|ninja|cmake|make)[\w.+-]*)'?(?: failed)?: No such file or directory`), classMissingTool, "$1 is missing"},
	{regexp.MustCompile(`(?:\[Errno 2\] |FileNotFoundError: .*)No such file or directory: '(cmake|ninja|make|gcc|g\+\+|cc|swig|cargo|rustc|go|git|pkg-config|autoconf|automake|bison|flex|protoc|patchelf|nasm|perl)'`), classMissingTool, "$1 is missing"},
	{regexp.MustCompile(`(?:^|\s)([\w.+-]+): (?:command )?not found$`), classMissingTool, "$1 is missing"},
	{regexp.MustCompile(`ERROR: (?:Program|Unknown compiler)[^']*'?([\w.+-]*).* (?:not found|found or not executable)`), classMissingTool, "a tool is missing: $0"},
	{regexp.MustCompile(`(?i)No CMAKE_\w+_COMPILER could be found|CMake must be installed|Could not find (?:a )?(?:cmake|ninja)|ERROR: Unknown compiler`), classMissingTool, "a tool is missing: $0"},
	{regexp.MustCompile(`ERROR: Dependency "([^"]+)" not found`), classMissingLibrary, "the library $1 is missing"},
	{regexp.MustCompile(`(?:Can not|Cannot|can't) find valid pkg-config name`), classMissingLibrary, "a library is missing: $0"},
	{regexp.MustCompile(`(?:Package|No package) '?([\w.+-]+)'?,? (?:required by '[^']*', )?(?:not found|was not found)`), classMissingLibrary, "the library $1 is missing"},
	{regexp.MustCompile(`(?:cannot find|unable to find library) -l([\w.+-]+)`), classMissingLibrary, "the library $1 is missing"},
	{regexp.MustCompile(`(?i)make sure the .*development packages are installed|Could (?:NOT|not) find (?:the )?[\w.+-]+ \(missing|Could not find [\w.+-]+ (?:library|headers)|library .* (?:not found|is required)|Could not find a package configuration file provided by`), classMissingLibrary, "a library is missing: $0"},
	{regexp.MustCompile(`(?i)(?:Temporary failure in name resolution|Could not resolve host|Connection refused|Network is unreachable|Failed to establish a new connection)`), classDownload, "the build needs the network and could not reach it: $0"},
	{regexp.MustCompile(`(?:error: could not compile|error\[E\d+\])`), classCompiler, "the compiler failed: $0"},
	{regexp.MustCompile(`^\S+:\d+(?::\d+)?: (?:fatal )?error: (.+)`), classCompiler, "the compiler failed: $0"},
	{regexp.MustCompile(`(?:error: command '\S+' failed with exit|ninja: build stopped|collect2: error|linker command failed|make(?:\[\d+\])?: \*\*\* )`), classCompiler, "the compiler failed: $0"},
	{regexp.MustCompile(`(?:ModuleNotFoundError|ImportError): (.+)`), classBackend, "the build needs a Python module that is not there: $1"},
	{regexp.MustCompile(`BackendUnavailable|Failed to (?:create|resolve) .*build environment`), classBackend, "the build backend cannot be started: $0"},
	{regexp.MustCompile(`^\s*((?:[\w.]+\.)?[A-Z]\w*(?:Error|Exception|Exit)\b.*)`), classBackend, "the build backend failed: $1"},
	{regexp.MustCompile(`^\s*cause: (.+)`), classBackend, "the build backend failed: $1"},
	{regexp.MustCompile(`^\s*(?:error|ERROR|Error): (.+)`), classBackend, "the build backend failed: $1"},
}

// evidenceLines is how much of the log's end a failed result carries.
const evidenceLines = 40

// classify says why a build failed, from the end of its log.
func classify(log []string, code int) *fault {
	f := &fault{Class: classBackend, Reason: fmt.Sprintf("the build ended with code %d", code)}
	if code == 128+9 {
		f.Class, f.Reason = classOutOfMemory, "the build was killed, most likely because memory ran out"
	}
	f.explain(log)
	return f
}

// explain finds a better class and reason in the end of a log, which becomes the evidence.
func (f *fault) explain(log []string) {
	f.Evidence = evidence(log)
	for _, p := range patterns {
		for _, line := range slices.Backward(log) {
			m := p.re.FindStringSubmatch(line)
			if m == nil {
				continue
			}
			f.Class = p.class
			f.Reason = strings.ReplaceAll(p.reason, "$0", strings.TrimSpace(line))
			if len(m) > 1 {
				f.Reason = strings.ReplaceAll(f.Reason, "$1", m[1])
			}
			f.Reason = oneLine(f.Reason)
			return
		}
	}
}

// evidence is what a failed result carries: the last lines, none too long.
func evidence(log []string) []string {
	list := make([]string, 0, evidenceLines)
	for _, line := range log[max(0, len(log)-evidenceLines):] {
		if len(line) > 1000 {
			line = strings.ToValidUTF8(line[:1000], "") + "…"
		}
		list = append(list, line)
	}
	return list
}

func oneLine(s string) string {
	s = strings.Join(strings.Fields(strings.ToValidUTF8(s, "\uFFFD")), " ")
	if r := []rune(s); len(r) > 300 {
		s = string(r[:300]) + "…"
	}
	return s
}

func verdictClass(verdict string) api.Class {
	switch verdict {
	case verdictTimeout:
		return classTimeout
	case verdictMemory:
		return classOutOfMemory
	}
	return classOther
}

func (w *Worker) verdictReason(verdict string, timeout time.Duration) string {
	switch verdict {
	case verdictTimeout:
		return fmt.Sprintf("it did not end within %s", timeout)
	case verdictMemory:
		return fmt.Sprintf("it took more than its limit of %d MiB of memory", w.Memory>>20)
	case verdictForks:
		return fmt.Sprintf("it started more processes than its limit of %d allows", w.Processes)
	case verdictDisk:
		return fmt.Sprintf("it wrote more than its limit of %d MiB to disk", w.Disk>>20)
	}
	return verdict
}
