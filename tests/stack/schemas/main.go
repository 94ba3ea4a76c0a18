// Reads a file as the program that it is for does, and fails where that one would: `schemas compose FILE` prints the
// project as docker compose resolves it, `schemas pytorchjob FILE` is silent.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/compose-spec/compose-go/v2/cli"
	kubeflow "github.com/kubeflow/training-operator/pkg/apis/kubeflow.org/v1"
	"sigs.k8s.io/yaml"
)

func compose(path string) error {
	options, err := cli.NewProjectOptions([]string{path}, cli.WithOsEnv)
	if err != nil {
		return err
	}
	project, err := options.LoadProject(context.Background())
	if err != nil {
		return err
	}
	text, err := project.MarshalJSON()
	fmt.Println(string(text))
	return err
}

// No field may be there that the operator does not know, nor have another type.
func pytorchJob(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return yaml.UnmarshalStrict(text, &kubeflow.PyTorchJob{})
}

func main() {
	checks := map[string]func(string) error{"compose": compose, "pytorchjob": pytorchJob}
	if len(os.Args) != 3 || checks[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "usage: schemas compose|pytorchjob FILE")
		os.Exit(2)
	}
	if err := checks[os.Args[1]](os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
