// Checks Kubernetes manifests like an API server with the CRDs of Istio, Envoy Gateway and the Gateway API. It finds
// unknown fields, and values that break the schema or a rule in CEL. The code is the API server's own.
//
//	kubernetes ISTIO_CRDS MANIFEST...
package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	envoygateway "github.com/envoyproxy/gateway"
	_ "istio.io/api/annotation" // keeps the module in go.mod: the first argument is a file of it
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/defaulting"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/listtype"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/pruning"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	sigsyaml "sigs.k8s.io/yaml"
)

// schemas contains the schemas of the CRDs, by apiVersion and kind.
type schemas map[string]*apiextensions.JSONSchemaProps

func main() {
	if err := run(os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(istio string, manifests []string) error {
	istioCRDs, err := os.ReadFile(istio)
	if err != nil {
		return err
	}
	known := schemas{}
	if err := errors.Join(known.add(istioCRDs), known.add(envoygateway.GatewayCRDs)); err != nil {
		return err
	}
	var problems []error
	for _, name := range manifests {
		text, err := os.ReadFile(name)
		if err == nil {
			err = eachDocument(text, known.check)
		}
		if err != nil {
			problems = append(problems, fmt.Errorf("%s: %w", name, err))
		}
	}
	return errors.Join(problems...)
}

// eachDocument calls use with each document of a YAML file, and collects the errors.
func eachDocument(text []byte, use func([]byte) error) error {
	var problems []error
	reader := yaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(text)))
	for {
		document, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return errors.Join(problems...)
		} else if err != nil {
			return err
		}
		problems = append(problems, use(document))
	}
}

func (s schemas) add(text []byte) error {
	return eachDocument(text, func(document []byte) error {
		var crd apiextensionsv1.CustomResourceDefinition
		if err := sigsyaml.Unmarshal(document, &crd); err != nil || crd.Kind != "CustomResourceDefinition" {
			return err
		}
		for _, version := range crd.Spec.Versions {
			if !version.Served {
				continue
			}
			var props apiextensions.JSONSchemaProps
			err := apiextensionsv1.Convert_v1_JSONSchemaProps_To_apiextensions_JSONSchemaProps(version.Schema.OpenAPIV3Schema, &props, nil)
			if err != nil {
				return err
			}
			s[crd.Spec.Group+"/"+version.Name+" "+crd.Spec.Names.Kind] = &props
		}
		return nil
	})
}

func (s schemas) check(document []byte) error {
	text, err := sigsyaml.YAMLToJSONStrict(document)
	if err != nil {
		return err
	}
	var object unstructured.Unstructured
	if err := object.UnmarshalJSON(text); err != nil {
		return err
	}
	kind := object.GetAPIVersion() + " " + object.GetKind()
	if props, found := s[kind]; found {
		err = checkCustom(object.Object, props)
	} else if kind == "v1 ConfigMap" {
		err = checkGatewayOptions(document)
	} else {
		err = errors.New("no schema is known for this kind")
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", kind, object.GetName(), err)
	}
	return nil
}

func checkCustom(object map[string]any, props *apiextensions.JSONSchemaProps) error {
	structural, err := schema.NewStructural(props)
	if err != nil {
		return err
	}
	var problems []error
	unknown := schema.UnknownFieldPathOptions{TrackUnknownFieldPaths: true}
	for _, path := range pruning.PruneWithOptions(object, structural, true, unknown) {
		problems = append(problems, fmt.Errorf("unknown field %s", path))
	}
	defaulting.Default(object, structural)
	validator, _, err := validation.NewSchemaValidator(props)
	if err != nil {
		return err
	}
	found := validation.ValidateCustomResource(nil, object, validator)
	found = append(found, listtype.ValidateListSetsAndMaps(nil, structural, object)...)
	if rules := cel.NewValidator(structural, true, celconfig.PerCallLimit); rules != nil {
		broken, _ := rules.Validate(context.Background(), nil, structural, object, nil, celconfig.RuntimeCELCostBudget)
		found = append(found, broken...)
	}
	return errors.Join(append(problems, found.ToAggregate())...)
}

// checkGatewayOptions checks a ConfigMap whose values Istio merges into the Deployment of a gateway.
func checkGatewayOptions(document []byte) error {
	var options corev1.ConfigMap
	if err := sigsyaml.UnmarshalStrict(document, &options); err != nil {
		return err
	}
	return sigsyaml.UnmarshalStrict([]byte(options.Data["deployment"]), &appsv1.Deployment{})
}
