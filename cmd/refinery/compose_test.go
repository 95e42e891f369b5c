package main

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
	"go.yaml.in/yaml/v3"
)

// composeService is what matters here of a service in the compose file.
type composeService struct {
	Image string
	Build *struct {
		Context, Dockerfile, Target string
		Args                        map[string]string
	}
	User        string
	Privileged  bool
	CapAdd      []string `yaml:"cap_add"`
	CapDrop     []string `yaml:"cap_drop"`
	SecurityOpt []string `yaml:"security_opt"`
	NetworkMode string   `yaml:"network_mode"`
	ReadOnly    bool     `yaml:"read_only"`
	Environment map[string]string
	Healthcheck struct{ Test string }
	Networks    []string
}

const composeFile = "../../compose/podman-compose.yml"

func readCompose(t *testing.T) (text string, services map[string]composeService) {
	t.Helper()
	data, err := os.ReadFile(composeFile)
	if err != nil {
		t.Fatal(err)
	}
	var file struct{ Services map[string]composeService }
	if err := yaml.Unmarshal(data, &file); err != nil {
		t.Fatal(err)
	}
	return string(data), file.Services
}

// known is the environment that commands of the program read.
func known(t *testing.T, commands ...string) map[string]bool {
	t.Helper()
	parser, err := kong.New(&cli{})
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, command := range parser.Model.Children {
		if slices.Contains(commands, command.Name) {
			for _, flag := range command.Flags {
				for _, name := range flag.Envs {
					names[name] = true
				}
			}
		}
	}
	return names
}

// What the compose file sets, the program reads: they cannot drift apart.
func TestComposeEnvironment(t *testing.T) {
	_, services := readCompose(t)
	for service, command := range map[string]string{"control": "serve", "worker": "worker"} {
		names := known(t, command)
		s := services[service]
		if len(names) == 0 || len(s.Environment) == 0 {
			t.Fatalf("%s: %d variables, of which the file sets %d", command, len(names), len(s.Environment))
		}
		for name, value := range s.Environment {
			if !names[name] {
				t.Errorf("%s: refinery %s knows no %s", service, command, name)
			}
			if !strings.HasPrefix(value, "${"+name+":-") && value != "${"+name+"}" {
				t.Errorf("%s: the environment does not override %s: %s", service, name, value)
			}
		}
	}
	for _, name := range []string{"QUEUE_BACKEND", "POSTGRES_DSN", "REDIS_URL", "KAFKA_BROKERS", "WORKER_TOKEN", "WORKER_WEBHOOK_URL"} {
		if services["control"].Environment[name] == "" {
			t.Errorf("the control plane is not given %s", name)
		}
	}
	if token := services["worker"].Environment["WORKER_TOKEN"]; token != services["control"].Environment["WORKER_TOKEN"] {
		t.Errorf("the worker's token is %s", token)
	}
	data, err := os.ReadFile("../../compose/Containerfile")
	if err != nil {
		t.Fatal(err)
	}
	names := known(t, "serve", "worker")
	for _, line := range regexp.MustCompile(`(?m)^ENV (.*)$`).FindAllStringSubmatch(string(data), -1) {
		for pair := range strings.FieldsSeq(line[1]) {
			if name, _, _ := strings.Cut(pair, "="); !names[name] {
				t.Errorf("Containerfile: the program knows no %s", name)
			}
		}
	}
}

// Every image from elsewhere can be replaced: by a variable in the compose file, by an argument in the Containerfile, with one default.
func TestComposeImages(t *testing.T) {
	_, services := readCompose(t)
	data, err := os.ReadFile("../../compose/Containerfile")
	if err != nil {
		t.Fatal(err)
	}
	args, stages := map[string]string{}, map[string]bool{}
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if len(f) == 2 && f[0] == "ARG" && len(stages) == 0 {
			name, byDefault, _ := strings.Cut(f[1], "=")
			args[name] = byDefault
		}
		if len(f) == 0 || f[0] != "FROM" {
			continue
		}
		if len(f) != 4 || f[2] != "AS" {
			t.Fatalf("a stage without a name: %s", line)
		}
		stages[f[3]] = true
		if name := strings.Trim(f[1], "${}"); f[1] != "${"+name+"}" || args[name] == "" {
			t.Errorf("the base of stage %s is no argument with a default: %s", f[3], f[1])
		}
	}
	given := map[string]bool{}
	for name, s := range services {
		if s.Build == nil {
			if want := "${" + strings.ToUpper(name) + "_IMAGE:-"; !strings.HasPrefix(s.Image, want) {
				t.Errorf("%s: the image is %s, want %s…}", name, s.Image, want)
			}
			continue
		}
		if !stages[s.Build.Target] || s.Build.Dockerfile != "compose/Containerfile" || s.Build.Context != ".." {
			t.Errorf("%s is built of %+v", name, s.Build)
		}
		for arg, value := range s.Build.Args {
			given[arg] = true
			if want := fmt.Sprintf("${%s:-%s}", arg, args[arg]); value != want {
				t.Errorf("%s: %s is %s, want %s as in the Containerfile", name, arg, value, want)
			}
		}
	}
	for arg := range args {
		if !given[arg] {
			t.Errorf("the compose file does not pass on %s", arg)
		}
	}
}

// Nothing is privileged, everything has a health check, and what builds run does not reach the servers.
func TestComposeRights(t *testing.T) {
	text, services := readCompose(t)
	if len(services) < 5 {
		t.Fatalf("%d services", len(services))
	}
	for name, s := range services {
		if s.Privileged || s.CapAdd != nil || s.NetworkMode != "" || len(s.CapDrop) == 0 || !slices.Contains(s.SecurityOpt, "no-new-privileges:true") {
			t.Errorf("%s has rights that it does not need: %+v", name, s)
		}
		if s.Healthcheck.Test == "" {
			t.Errorf("%s has no health check", name)
		}
		if slices.Contains(s.Networks, "workers") && name != "control" && name != "worker" {
			t.Errorf("builds reach %s", name)
		}
	}
	if worker := services["worker"]; !slices.Equal(worker.Networks, []string{"workers"}) {
		t.Errorf("builds reach %v", worker.Networks)
	}
	if !services["control"].ReadOnly {
		t.Error("the control plane could write to its image")
	}
	// podman-compose 1.0 leaves these as they stand: the text would be the token.
	if empty := regexp.MustCompile(`\$\{\w+:?-\}`).FindString(text); empty != "" {
		t.Errorf("an empty default is not understood everywhere: write %s without it", empty)
	}
}

// Whatever can be set for the compose file is in its manual.
func TestComposeManual(t *testing.T) {
	text, _ := readCompose(t)
	manual, err := os.ReadFile("../../compose/README.md")
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile(`[^$]\$\{(\w+)`).FindAllStringSubmatch(text, -1)
	if len(names) < 10 {
		t.Fatalf("%d variables", len(names))
	}
	for _, name := range names {
		if !strings.Contains(string(manual), "`"+name[1]+"`") {
			t.Errorf("compose/README.md does not explain %s", name[1])
		}
	}
}
